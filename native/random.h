/* PCG64 (O'Neill 2014, XSL-RR 128/64), seeded as NumPy's default generator is. */
#ifndef RETNET_RANDOM_H
#define RETNET_RANDOM_H

#include <stdint.h>

typedef struct {
    uint64_t state[2], increment[2]; /* low half first */
} Random;

void random_seed(Random *random, uint64_t seed);

/* Uniform in [0, 1), a multiple of 2^-53. */
double random_double(Random *random);

#endif
