/* rope.c once more, for CPUs with AVX2 and FMA: the same C and the same bits, without duet-fma.h's emulation. The executor
 * takes this one whenever the device runs vector kernels.
 */
#if defined(__x86_64__)
#define duet_rope_tables duet_rope_tables_avx2
#define duet_rope_and_store duet_rope_and_store_avx2
#include "rope.c"
#endif
