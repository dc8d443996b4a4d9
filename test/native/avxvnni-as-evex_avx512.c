/* The AVX-VNNI table through AVX-512's form of the same instruction, so that machines without AVX-VNNI compare its bits. */
#define DUET_AVXVNNI_AS_EVEX
#include "../../src/native/kernels_avxvnni.c"
