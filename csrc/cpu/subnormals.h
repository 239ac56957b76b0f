// Subnormal numbers stay numbers, whatever the process is set to.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace weibull {

// While this lives, subnormal numbers are numbers on x86: torch.set_flush_denormal(True) in the
// training loop must not change what is measured. A new thread inherits its creator's setting.
class SubnormalsKept {
#if defined(__x86_64__)
    static constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
    unsigned before_ = _mm_getcsr();

public:
    SubnormalsKept() { _mm_setcsr(before_ & ~(kFlushToZero | kDenormalsAreZero)); }
    ~SubnormalsKept() { _mm_setcsr(before_); }
#else
public:
    SubnormalsKept() {}
#endif
    SubnormalsKept(const SubnormalsKept&) = delete;
    SubnormalsKept& operator=(const SubnormalsKept&) = delete;
};

}  // namespace weibull
