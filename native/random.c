#include "random.h"

__extension__ typedef unsigned __int128 Wide;

static Wide wide(const uint64_t halves[2]) { return (Wide)halves[1] << 64 | halves[0]; }

static void store(uint64_t halves[2], Wide value) {
    halves[0] = (uint64_t)value;
    halves[1] = (uint64_t)(value >> 64);
}

static void step(Random *random) {
    static const uint64_t MULTIPLIER[2] = {0x4385df649fccf645, 0x2360ed051fc65da4};
    store(random->state, wide(random->state) * wide(MULTIPLIER) + wide(random->increment));
}

static uint64_t next(Random *random) {
    step(random);
    const uint64_t mixed = random->state[1] ^ random->state[0];
    const int by = (int)(random->state[1] >> 58);
    return mixed >> by | mixed << (-by & 63);
}

double random_double(Random *random) { return (double)(next(random) >> 11) * 0x1p-53; }

/* NumPy's SeedSequence: 32-bit words are hashed into a pool of four, and the pool into eight. */
enum { POOL = 4, WORDS = 8 };

static uint32_t hashed(uint32_t value, uint32_t *constant, uint32_t multiplier) {
    value ^= *constant;
    *constant *= multiplier;
    value *= *constant;
    return value ^ value >> 16;
}

static uint32_t mixed(uint32_t x, uint32_t y) {
    const uint32_t found = 0xca01f9dd * x - 0x4973f715 * y;
    return found ^ found >> 16;
}

void random_seed(Random *random, uint64_t seed) {
    const uint32_t entropy[POOL] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t pool[POOL], words[WORDS], constant = 0x43b0d7e5;
    for (int i = 0; i < POOL; i++) pool[i] = hashed(entropy[i], &constant, 0x931e8875);
    for (int from = 0; from < POOL; from++)
        for (int to = 0; to < POOL; to++)
            if (from != to)
                pool[to] = mixed(pool[to], hashed(pool[from], &constant, 0x931e8875));
    constant = 0x8b51f9dd;
    for (int i = 0; i < WORDS; i++) words[i] = hashed(pool[i % POOL], &constant, 0x58f38ded);
    uint64_t halves[WORDS / 2];
    for (int i = 0; i < WORDS / 2; i++)
        halves[i] = (uint64_t)words[2 * i + 1] << 32 | words[2 * i];
    const uint64_t start[2] = {halves[1], halves[0]}, sequence[2] = {halves[3], halves[2]};
    *random = (Random){0};
    store(random->increment, wide(sequence) << 1 | 1);
    step(random);
    store(random->state, wide(random->state) + wide(start));
    step(random);
}
