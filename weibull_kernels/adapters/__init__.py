"""`wk.attach` as a callback of training frameworks: `adapters.transformers`, `adapters.lightning`."""
