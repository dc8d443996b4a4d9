/* sample_row.c once more, for CPUs with AVX2 and FMA: the same C and the same bits, without duet-fma.h's emulation. */
#if defined(__x86_64__)
#define duet_sample_row duet_sample_row_avx2
#include "sample_row.c"
#endif
