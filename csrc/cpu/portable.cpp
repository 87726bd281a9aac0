// The CPU kernels in vectors of four floats, which every 64-bit processor has (SSE2, NEON).
#define VECTOR_BYTES 16
#define KERNELS portable_kernels
#include "instructions.h"
