// Every function from here to target_end.h is compiled for the instruction set WK_TARGET.
#define WK_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define WK_PUSH(target_name) \
    WK_PRAGMA(clang attribute push(__attribute__((target(target_name))), apply_to = function))
WK_PUSH(WK_TARGET)
#else
#define WK_PUSH(target_name) WK_PRAGMA(GCC target(target_name))
#pragma GCC push_options
WK_PUSH(WK_TARGET)
#endif
