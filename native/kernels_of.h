/* What one thread does with rows of numbers, for one instruction set: the header isa_*.h that was
 * included before gives NAME, TARGET, LANES and the vectors. */

#define Ints NAME(Ints)
#define Floats NAME(Floats)

/* Scales of a row as float32, times those of a token where it is not NULL, padded with zeros. */
TARGET static inline void NAME(row_scales)(const Matrix *m, size_t row, const float *token,
                                           float *out) {
    const int blocks = m->columns / m->block;
    const float *single = (const float *)m->scales + row * blocks;
    const uint16_t *half = (const uint16_t *)m->scales + row * blocks;
    for (int i = 0; i < padded(blocks); i += FLOATS) {
        const int n = blocks - i < FLOATS ? blocks - i : FLOATS;
        Floats v = NAME(none)();
        if (n > 0) v = m->half_scales ? NAME(some_halves)(half + i, n) : NAME(some)(single + i, n);
        if (token) v = NAME(times)(v, NAME(loadf)(token + i));
        NAME(storef)(out + i, v);
    }
}

/* The zero points of a row that has its own, padded with anything finite. */
TARGET static inline void NAME(row_zeros)(const Matrix *m, size_t row, float *out) {
    const int blocks = m->columns / m->block, bytes = (blocks * m->bits + 7) / 8;
    const uint8_t *zeros = m->zeros + row * (size_t)bytes;
    for (int i = 0; i < padded(blocks); i += 8) {
        const int left = bytes - i * m->bits / 8; /* a zero point has as many bits as 8 have bytes */
        uint64_t eight = 0;
        if (left >= m->bits) memcpy(&eight, zeros + i * m->bits / 8, m->bits == 8 ? 8 : 4);
        else
            for (int j = 0; j < left; j++) eight |= (uint64_t)zeros[i * m->bits / 8 + j] << 8 * j;
        if (m->bits == 4) NAME(nibbles_to_floats)((uint32_t)eight, out + i);
        else
            for (int j = 0; j < 8; j++) out[i + j] = (float)(eight >> 8 * j & 255);
    }
}

/* The sum over blocks of scale * scale * zero * (sum of codes): what a row's own zero points add to
 * its sum; scales of the row and of the token, or their products and NULL. */
TARGET static inline Floats NAME(of_zeros)(const Matrix *m, const float *scales,
                                           const float *token_scales, const float *zeros,
                                           const float *sums) {
    Floats part = NAME(none)();
    for (int i = 0; i < m->columns / m->block; i += FLOATS) {
        Floats step = NAME(loadf)(scales + i);
        if (token_scales) step = NAME(times)(step, NAME(loadf)(token_scales + i));
        step = NAME(times)(step, NAME(loadf)(zeros + i));
        part = NAME(plus)(part, step, NAME(loadf)(sums + i));
    }
    return part;
}

/* sum + the products of GROUP weights, as they are stored, and as many activations. */
TARGET static inline Ints NAME(group)(Ints sum, const uint8_t *codes, const Activations *x, int at,
                                      int bits) {
    if (bits == 4) return NAME(dot_bytes)(sum, NAME(nibbles)(codes), bytes_of(x) + at);
    for (int i = 0; i < GROUP; i += LANES)
        sum = NAME(dot)(sum, NAME(wide)(codes + i), NAME(load)(x->codes + at + i));
    return sum;
}

/* Rows `row`, `row` + apart, … times one token: the sum over blocks of scale * scale * ((code -
 * zero) . codes). They share what is read of x. bits, block: the matrix's, as constants. */
TARGET static inline __attribute__((always_inline)) void NAME(some_rows)(
    const Matrix *m, size_t row, size_t apart, const Activations *x, float y[AT_ONCE],
    const int bits, const int block, float *buffer) {
    const int blocks = m->columns / block, bytes = GROUP * bits / 8;
    const size_t row_bytes = (size_t)m->columns * bits / 8;
    const uint8_t *at[AT_ONCE];
    float *steps[AT_ONCE], *zeros = buffer + AT_ONCE * padded(blocks);
    Floats sums[AT_ONCE];
    for (int r = 0; r < AT_ONCE; r++) {
        at[r] = m->codes + (row + r * apart) * row_bytes;
        steps[r] = buffer + r * padded(blocks);
        NAME(row_scales)(m, row + r * apart, x->scales, steps[r]);
        sums[r] = NAME(none)();
    }
    for (int i = 0; i < blocks; i++) {
        Ints parts[AT_ONCE];
        UNROLLED for (int r = 0; r < AT_ONCE; r++)
            parts[r] = NAME(load_ints)(x->starts + i * INTS);
        for (int j = i * block; j < (i + 1) * block; j += GROUP)
            UNROLLED for (int r = 0; r < AT_ONCE; r++) {
                __builtin_prefetch(at[r] + AHEAD);
                parts[r] = NAME(group)(parts[r], at[r], x, j, bits);
                at[r] += bytes;
            }
        UNROLLED for (int r = 0; r < AT_ONCE; r++)
            sums[r] = NAME(plus)(sums[r], NAME(to_floats)(parts[r]), NAME(all)(steps[r][i]));
    }
    for (int r = 0; r < AT_ONCE; r++) {
        if (m->zeros) {
            NAME(row_zeros)(m, row + r * apart, zeros);
            sums[r] = NAME(minus)(sums[r], NAME(of_zeros)(m, steps[r], NULL, zeros, x->sums));
        }
        y[r] = NAME(total)(sums[r]);
    }
}

/* Rows first … last - 1 times one token, some at a time from far places: each place is read
 * straight on, which is what the memory's own reading ahead follows. Rows side by side, or one,
 * take up to twice as long. */
TARGET static void NAME(rows)(const Matrix *m, int first, int last, const Activations *x, float *y,
                              int add, void *scratch) {
    const int apart = (last - first) / AT_ONCE, together = first + apart * AT_ONCE;
    for (int i = 0; i < apart + last - together; i++) {
        const int row = i < apart ? first + i : together + i - apart;
        float found[AT_ONCE];
        const int step = i < apart ? apart : 0; /* the last few one by one */
        if (m->bits == 8 && m->block == 128)
            NAME(some_rows)(m, row, step, x, found, 8, 128, scratch);
        else if (m->bits == 8) NAME(some_rows)(m, row, step, x, found, 8, m->block, scratch);
        else if (m->block == 32) NAME(some_rows)(m, row, step, x, found, 4, 32, scratch);
        else NAME(some_rows)(m, row, step, x, found, 4, m->block, scratch);
        for (int r = 0; r < (step ? AT_ONCE : 1); r++) {
            float *to = y + row + r * step;
            *to = found[r] + (add ? *to : 0);
        }
    }
}

/* What a tile multiplies with: codes of a chunk's rows ready to be multiplied (int16 of 8 bits, a
 * byte each of 4 bits), scales and zero points. */
typedef struct {
    int16_t *codes;
    float *scales, *zeros;
} NAME(Chunk);

TARGET static NAME(Chunk) NAME(chunk)(const Matrix *m, int first, int last, void *scratch) {
    const int columns = m->columns, stride = padded(columns / m->block);
    NAME(Chunk) c = {.codes = scratch};
    c.scales = (float *)(c.codes + (size_t)CHUNK_ROWS * columns);
    c.zeros = c.scales + (size_t)CHUNK_ROWS * stride;
    for (int i = 0; i < CHUNK_ROWS; i++) {
        const size_t row = first + i < last ? first + i : last - 1;
        const uint8_t *codes = m->codes + row * ((size_t)columns * m->bits / 8);
        int16_t *to = c.codes + (size_t)i * columns;
        for (int k = 0; k < columns; k += GROUP)
            if (m->bits == 4)
                NAME(store_bytes)((uint8_t *)to + k, NAME(nibbles)(codes + k / 2));
            else
                for (int j = k; j < k + GROUP; j += LANES)
                    NAME(store)(to + j, NAME(wide)(codes + j));
        NAME(row_scales)(m, row, NULL, c.scales + (size_t)i * stride);
        if (m->zeros) NAME(row_zeros)(m, row, c.zeros + (size_t)i * stride);
    }
    return c;
}

/* TILE_ROWS rows of a chunk times TILE_TOKENS tokens: out[i] is of row i / TILE_TOKENS and token
 * i % TILE_TOKENS. Every sum is made as `some_rows` makes it, so that a token gives the same bits
 * alone and among others. */
TARGET static inline __attribute__((always_inline)) void NAME(tile)(
    const Matrix *m, const NAME(Chunk) *c, int row, const Activations x[TILE_TOKENS],
    float out[TILE_ROWS * TILE_TOKENS], const int bits) {
    const int columns = m->columns, block = m->block, blocks = columns / block;
    const int16_t *codes = c->codes + (size_t)row * columns;
    const float *scales = c->scales + (size_t)row * padded(blocks);
    Floats sums[TILE_ROWS * TILE_TOKENS];
    UNROLLED for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) sums[i] = NAME(none)();
    for (int b = 0; b < blocks; b++) {
        Ints parts[TILE_ROWS * TILE_TOKENS];
        UNROLLED for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++)
            parts[i] = NAME(load_ints)(x[i % TILE_TOKENS].starts + b * INTS);
        if (bits == 4) {
            for (int k = b * block; k < (b + 1) * block; k += GROUP)
                UNROLLED for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++)
                    parts[i] = NAME(dot_bytes)(
                        parts[i],
                        NAME(load_bytes)((const uint8_t *)(codes + i / TILE_TOKENS * columns) + k),
                        bytes_of(&x[i % TILE_TOKENS]) + k);
        } else {
            for (int k = b * block; k < (b + 1) * block; k += LANES) {
                Ints v[TILE_TOKENS];
                UNROLLED for (int t = 0; t < TILE_TOKENS; t++) v[t] = NAME(load)(x[t].codes + k);
                UNROLLED for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++)
                    parts[i] = NAME(dot)(parts[i], NAME(load)(codes + i / TILE_TOKENS * columns + k),
                                         v[i % TILE_TOKENS]);
            }
        }
        UNROLLED for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) {
            const Floats scale = NAME(all)(scales[i / TILE_TOKENS * padded(blocks) + b]);
            const Floats step = NAME(times)(scale, NAME(all)(x[i % TILE_TOKENS].scales[b]));
            sums[i] = NAME(plus)(sums[i], NAME(to_floats)(parts[i]), step);
        }
    }
    if (m->zeros)
        for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) {
            const size_t at = (size_t)(row + i / TILE_TOKENS) * padded(blocks);
            const Activations *of = &x[i % TILE_TOKENS];
            sums[i] = NAME(minus)(sums[i], NAME(of_zeros)(m, c->scales + at, of->scales,
                                                          c->zeros + at, of->sums));
        }
    UNROLLED for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) out[i] = NAME(total)(sums[i]);
}

/* Rows first … last - 1 times `tokens` tokens; y [tokens, rows]. */
TARGET static void NAME(rows_by_tokens)(const Matrix *m, int first, int last, const Activations *x,
                                        int tokens, float *y, int add, void *scratch) {
    const NAME(Chunk) chunk = NAME(chunk)(m, first, last, scratch);
    for (int token = 0; token < tokens; token += TILE_TOKENS) {
        Activations some[TILE_TOKENS];
        for (int t = 0; t < TILE_TOKENS; t++)
            some[t] = of_token(m, x, token + t < tokens ? token + t : token);
        for (int row = first; row < last; row += TILE_ROWS) {
            float out[TILE_ROWS * TILE_TOKENS];
            if (m->bits == 8) NAME(tile)(m, &chunk, row - first, some, out, 8);
            else NAME(tile)(m, &chunk, row - first, some, out, 4);
            for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) {
                const int of = row + i / TILE_TOKENS, t = token + i % TILE_TOKENS;
                float *to = y + (size_t)t * m->rows + of;
                if (of < last && t < tokens) *to = out[i] + (add ? *to : 0);
            }
        }
    }
}

/* One token in the matrix's blocks, x = scale * code: 16 bits where the weights have 8, and 8 bits
 * where they have 4, in their order. What is not finite makes the scale, and so every product, not
 * finite. */
TARGET static void NAME(quantize)(const Matrix *m, const float *x, Activations *out, int token) {
    const int block = m->block, blocks = m->columns / block, whole = m->inputs / GROUP * GROUP;
    const float most = m->bits == 8 ? 32767.0f : 127.0f;
    const Activations to = of_token(m, out, token);
    float last[GROUP] = {0}; /* inputs that fill no group */
    memcpy(last, x + whole, sizeof(float) * (m->inputs - whole));
    memset(to.codes, 0, sizeof(int16_t) * m->columns);
    memset(to.sums, 0, sizeof(float) * padded(blocks));
    memset(to.scales, 0, sizeof(float) * padded(blocks));
    memset(to.starts, 0, sizeof(int32_t) * INTS * blocks);
    for (int b = 0; b < blocks; b++) {
        const int end = (b + 1) * block < m->inputs ? (b + 1) * block : m->inputs;
        float sizes[GROUP] = {0}, zeros[GROUP] = {0}, largest = 0, spoiled = 0;
        for (int i = b * block; i < end; i += GROUP) {
            const float *group = i < whole ? x + i : last;
            for (int j = 0; j < GROUP; j++) {
                float size = fabsf(group[j]);
                sizes[j] = size > sizes[j] ? size : sizes[j];
                zeros[j] += group[j] * 0.0f;
            }
        }
        for (int j = 0; j < GROUP; j++) {
            largest = sizes[j] > largest ? sizes[j] : largest;
            spoiled += zeros[j];
        }
        to.scales[b] = largest / most + spoiled;
        if (!(largest > 0 && to.scales[b] < INFINITY)) continue;
        const float inverse = most / largest;
        int32_t total = 0;
        for (int i = b * block; i < end; i += GROUP) {
            const float *group = i < whole ? x + i : last;
            int16_t codes[GROUP];
            for (int j = 0; j < GROUP; j++) {
                float scaled = group[j] * inverse;
                codes[j] = (int16_t)(int32_t)(scaled + copysignf(0.5f, scaled));
                total += codes[j];
            }
            if (m->bits == 8) memcpy(to.codes + i, codes, sizeof codes);
            else
                for (int j = 0; j < GROUP / 2; j++) {
                    bytes_of(&to)[i + j] = (int8_t)codes[2 * j];
                    bytes_of(&to)[i + GROUP / 2 + j] = (int8_t)codes[2 * j + 1];
                }
        }
        to.sums[b] = (float)total; /* exact: below 2^24 */
        to.starts[b * INTS] = m->zeros ? 0 : -(1 << (m->bits - 1)) * total;
    }
}

/* The row of an embedding. */
TARGET static void NAME(lookup)(const Matrix *m, size_t row, float *out, void *scratch) {
    const uint8_t *codes = m->codes + row * ((size_t)m->columns * m->bits / 8);
    float *scales = scratch;
    NAME(row_scales)(m, row, NULL, scales);
    for (int i = 0; i < m->inputs; i++) {
        const int code = m->bits == 8 ? codes[i] : codes[i / 2] >> i % 2 * 4 & 15;
        out[i] = scales[i / m->block] * (float)(code - zero_point(m, row, i / m->block));
    }
}

/* x / rms(x) * weight, rms with eps under the root. */
TARGET static void NAME(rms_norm)(const float *x, const float *weight, int n, float eps, float *y) {
    float lanes[16] = {0}, squares = 0;
    int whole = n / 16 * 16;
    for (int i = 0; i < whole; i += 16)
        for (int j = 0; j < 16; j++) lanes[j] += x[i + j] * x[i + j];
    for (int i = whole; i < n; i++) squares += x[i] * x[i];
    for (int j = 0; j < 16; j++) squares += lanes[j];
    const float factor = 1.0f / sqrtf(squares / (float)n + eps);
    for (int i = 0; i < n; i++) y[i] = x[i] * factor * weight[i];
}

/* e^x to 2 ulp for x in [-87, 88], clamped outside: 2^k e^r with a polynomial for r (Cephes). */
TARGET static inline float NAME(exponential)(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float k = rintf(x * 1.44269504f);
    const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    union {
        int32_t bits;
        float value;
    } power = {.bits = ((int32_t)k + 127) << 23};
    return (p * r * r + r + 1.0f) * power.value;
}

/* out = act(gate) * y, or act(gate) alone where y is NULL; out may be y. */
TARGET static void NAME(activate)(const float *gate, const float *y, int n, int gelu, float *out) {
    for (int i = 0; i < n; i++) {
        float x = gate[i], by = y ? y[i] : 1.0f;
        if (gelu) out[i] = by * (0.5f * x * (1.0f + erff(x * 0.70710678f)));
        else out[i] = by * (x / (1.0f + NAME(exponential)(-x)));
    }
}

/* One head, one token (eq. 6): S = gamma S + k v', o = q S; S [keys, values]. */
TARGET static void NAME(retain)(float *restrict state, const float *q, const float *k,
                                const float *restrict v, float gamma, int keys, int values,
                                float *restrict o) {
    memset(o, 0, sizeof(float) * values);
    for (int i = 0; i < keys; i++, state += values) {
        const float k_i = k[i], q_i = q[i];
        for (int j = 0; j < values; j++) {
            const float s = NAME(fma)(gamma, state[j], k_i * v[j]);
            state[j] = s;
            o[j] = NAME(fma)(q_i, s, o[j]);
        }
    }
}

#undef Ints
#undef Floats
#undef NAME
#undef TARGET
#undef LANES
#undef INTS
#undef FLOATS
