/* What one thread does with rows of numbers, for one instruction set. The header isa_*.h that was
 * included before gives NAME and TARGET of a function, and the vectors: Shorts of LANES int16, Ints
 * of INTS int32, Floats of FLOATS float32, Fours of 64 weights of 4 bits. */

#define Ints NAME(Ints)
#define Shorts NAME(Shorts)
#define Fours NAME(Fours)
#define Floats NAME(Floats)

/* Scales of FLOATS blocks of a row from `i` on, 0 where there are no more. */
TARGET static inline Floats NAME(scales)(const Matrix *m, size_t row, int i) {
    const int blocks = m->columns / m->block, n = blocks - i < FLOATS ? blocks - i : FLOATS;
    if (m->half_scales) return NAME(some_halves)((const uint16_t *)m->scales + row * blocks + i, n);
    return NAME(some)((const float *)m->scales + row * blocks + i, n);
}

/* Zero points of FLOATS blocks of a row that has its own, anything finite where there are no more.
 */
TARGET static inline Floats NAME(zeros)(const Matrix *m, size_t row, int i) {
    if (m->bits == 4) return NAME(nibbles)(zero_bits(m, row, i, FLOATS));
    float each[FLOATS] = {0};
    for (int j = 0; j < FLOATS && i + j < m->columns / m->block; j++)
        each[j] = (float)zero_point(m, row, i + j);
    return NAME(loadf)(each);
}

/* What the products of a row's blocks are multiplied with, into `steps`: its scales, with 4 bits
 * times the token's. What the row's own zero points, if it has any, add to its sum. */
TARGET static __attribute__((noinline)) float NAME(row_steps)(const Matrix *m, size_t row,
                                                              const Activations *x, float *steps) {
    Floats part = NAME(none)();
    for (int i = 0; i < m->columns / m->block; i += FLOATS) {
        const Floats scales = NAME(scales)(m, row, i);
        Floats products = scales;
        if (m->bits == 4) products = NAME(times)(scales, NAME(loadf)(x->scales + i));
        NAME(storef)(steps + i, products);
        if (m->zeros)
            part = NAME(plus)(part, NAME(times)(scales, NAME(zeros)(m, row, i)),
                              NAME(loadf)(x->sums + i));
    }
    return NAME(total)(part);
}

/* The steps of a unit: one block's, or two's in the halves of a vector. */
TARGET static inline Floats NAME(step)(const float *steps, int unit, int bits, int block) {
    return unit_of(bits, block) == block ? NAME(all)(steps[unit]) : NAME(pair)(steps + 2 * unit);
}

/* sum + the products of GROUP weights of 8 bits, as they are stored, and as many activations. */
TARGET static inline Ints NAME(dot_eights)(Ints sum, const uint8_t *codes, const int16_t *x) {
    for (int i = 0; i < GROUP; i += LANES)
        sum = NAME(dot)(sum, NAME(wide)(codes + i), NAME(load)(x + i));
    return sum;
}

/* Rows `row`, `row` + apart, … times one token: the sum over blocks of scale * scale * (codes .
 * (codes - zero)). They share what is read of x. count: of rows; bits, block: the matrix's. All
 * three are constants. */
TARGET static inline __attribute__((always_inline)) void NAME(some_rows)(
    const Matrix *m, size_t row, size_t apart, const Activations *x, float *y, const int count,
    const int bits, const int block, float *buffer) {
    const int columns = m->columns, blocks = columns / block;
    const int unit = unit_of(bits, block), units = (columns + unit - 1) / unit;
    const int group = bits == 8 ? GROUP : FOURS;
    const size_t row_bytes = (size_t)columns * bits / 8;
    const uint8_t *at[AT_ONCE];
    const float *steps[AT_ONCE];
    float of_zeros[AT_ONCE];
    Floats sums[AT_ONCE];
    UNROLLED for (int r = 0; r < count; r++) {
        const size_t found = row + r * apart;
        at[r] = m->codes + found * row_bytes;
        steps[r] = (const float *)m->scales + found * blocks;
        of_zeros[r] = 0;
        if (bits == 4 || m->half_scales || m->zeros) {
            float *own = buffer + r * padded(blocks);
            of_zeros[r] = NAME(row_steps)(m, found, x, own);
            steps[r] = own;
        }
        sums[r] = NAME(none)();
    }
    const int16_t *shorts = x->codes;
    const int8_t *fours = bytes_of(x);
    for (int u = 0; u < units; u++) {
        Ints parts[AT_ONCE];
        UNROLLED for (int r = 0; r < count; r++) parts[r] = NAME(load_ints)(x->starts + u * INTS);
        for (int j = 0; j < unit; j += group, shorts += group, fours += group)
            UNROLLED for (int r = 0; r < count; r++) {
                __builtin_prefetch(at[r] + AHEAD);
                if (bits == 8) parts[r] = NAME(dot_eights)(parts[r], at[r], shorts);
                else {
                    const int half = unit > block && u == units - 1 && columns % FOURS;
                    parts[r] = NAME(dot_fours)(parts[r], NAME(fours)(at[r], half), fours);
                }
                at[r] += group * bits / 8;
            }
        UNROLLED for (int r = 0; r < count; r++)
            sums[r] = NAME(plus)(sums[r], NAME(to_floats)(parts[r]),
                                 NAME(step)(steps[r], u, bits, block));
    }
    UNROLLED for (int r = 0; r < count; r++)
        y[r] = (NAME(total)(sums[r]) - of_zeros[r]) * (bits == 8 ? x->scales[0] : 1);
}

/* Rows first … last - 1 times one token, some at a time from far places: each place is read
 * straight on, which is what the memory's own reading ahead follows. Rows side by side, or one,
 * take up to twice as long. */
TARGET static void NAME(rows)(const Matrix *m, int first, int last, const Activations *x, float *y,
                              int add, void *scratch) {
    const int count = m->bits == 8 ? 2 : 4, apart = (last - first) / count;
    const int together = first + apart * count;
    for (int i = 0; i < apart + last - together; i++) {
        const int row = i < apart ? first + i : together + i - apart;
        const int step = i < apart ? apart : 0; /* the last few one by one */
        float found[AT_ONCE];
        if (m->bits == 8 && m->block == 128)
            NAME(some_rows)(m, row, step, x, found, 2, 8, 128, scratch);
        else if (m->bits == 8) NAME(some_rows)(m, row, step, x, found, 2, 8, m->block, scratch);
        else if (m->block == 32) NAME(some_rows)(m, row, step, x, found, 4, 4, 32, scratch);
        else NAME(some_rows)(m, row, step, x, found, 4, 4, m->block, scratch);
        for (int r = 0; r < (step ? count : 1); r++) {
            float *to = y + row + r * step;
            *to = found[r] + (add ? *to : 0);
        }
    }
}

/* What a tile multiplies with: codes of a chunk's rows ready to be multiplied (int16 of 8 bits, a
 * byte each of 4 bits), scales, and scales times the rows' own zero points. */
typedef struct {
    int16_t *codes;
    float *scales, *levels;
} NAME(Chunk);

TARGET static NAME(Chunk) NAME(chunk)(const Matrix *m, int first, int last, void *scratch) {
    const int columns = m->columns, stride = padded(columns / m->block);
    NAME(Chunk) c = {.codes = scratch};
    c.scales = (float *)(c.codes + (size_t)CHUNK_ROWS * columns);
    c.levels = c.scales + (size_t)CHUNK_ROWS * stride;
    for (int i = 0; i < CHUNK_ROWS; i++) {
        const size_t row = first + i < last ? first + i : last - 1;
        const uint8_t *codes = m->codes + row * ((size_t)columns * m->bits / 8);
        int16_t *to = c.codes + (size_t)i * columns;
        if (m->bits == 8)
            for (int k = 0; k < columns; k += LANES) NAME(store)(to + k, NAME(wide)(codes + k));
        else
            for (int k = 0; k < columns; k += FOURS)
                NAME(store_fours)((uint8_t *)to + k,
                                  NAME(fours)(codes + k / 2, k + FOURS > columns));
        for (int b = 0; b < columns / m->block; b += FLOATS) {
            const Floats scales = NAME(scales)(m, row, b);
            NAME(storef)(c.scales + i * stride + b, scales);
            if (m->zeros)
                NAME(storef)(c.levels + i * stride + b,
                             NAME(times)(scales, NAME(zeros)(m, row, b)));
        }
    }
    return c;
}

/* TILE_ROWS rows of a chunk times TILE_TOKENS tokens: out[i] is of row i / TILE_TOKENS and token
 * i % TILE_TOKENS. Every sum is made as `some_rows` makes it, so that a token gives the same bits
 * alone and among others. */
TARGET static inline __attribute__((always_inline)) void NAME(tile)(
    const Matrix *m, const NAME(Chunk) *c, int row, const Activations x[TILE_TOKENS],
    float out[TILE_ROWS * TILE_TOKENS], const int bits, const int block) {
    const int columns = m->columns, stride = padded(columns / block);
    const int unit = unit_of(bits, block);
    const int16_t *codes = c->codes + (size_t)row * columns;
    const float *scales = c->scales + (size_t)row * stride;
    Floats sums[TILE_ROWS * TILE_TOKENS];
    UNROLLED for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) sums[i] = NAME(none)();
    for (int u = 0, k = 0; k < columns; u++) {
        Ints parts[TILE_ROWS * TILE_TOKENS];
        UNROLLED for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++)
            parts[i] = NAME(load_ints)(x[i % TILE_TOKENS].starts + u * INTS);
        if (bits == 4) {
            for (const int end = k + unit; k < end; k += FOURS)
                UNROLLED for (int r = 0; r < TILE_ROWS; r++) {
                    const Fours w = NAME(load_fours)((const uint8_t *)(codes + r * columns) + k);
                    UNROLLED for (int t = 0; t < TILE_TOKENS; t++) {
                        Ints *part = &parts[r * TILE_TOKENS + t];
                        *part = NAME(dot_fours)(*part, w, bytes_of(&x[t]) + k);
                    }
                }
        } else {
            for (const int end = k + unit; k < end; k += LANES) {
                Shorts v[TILE_TOKENS];
                UNROLLED for (int t = 0; t < TILE_TOKENS; t++) v[t] = NAME(load)(x[t].codes + k);
                UNROLLED for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++)
                    parts[i] = NAME(dot)(parts[i], NAME(load)(codes + i / TILE_TOKENS * columns + k),
                                         v[i % TILE_TOKENS]);
            }
        }
        UNROLLED for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) {
            const float *of_row = scales + i / TILE_TOKENS * stride;
            const float *of_token = x[i % TILE_TOKENS].scales;
            Floats step = NAME(step)(of_row, u, bits, block);
            if (bits == 4) step = NAME(times)(step, NAME(step)(of_token, u, bits, block));
            sums[i] = NAME(plus)(sums[i], NAME(to_floats)(parts[i]), step);
        }
    }
    UNROLLED for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) {
        const Activations *of = &x[i % TILE_TOKENS];
        const float *levels = c->levels + (size_t)(row + i / TILE_TOKENS) * stride;
        Floats part = NAME(none)();
        for (int b = 0; m->zeros && b < columns / block; b += FLOATS)
            part = NAME(plus)(part, NAME(loadf)(levels + b), NAME(loadf)(of->sums + b));
        const float of_zeros = m->zeros ? NAME(total)(part) : 0;
        out[i] = (NAME(total)(sums[i]) - of_zeros) * (bits == 8 ? of->scales[0] : 1);
    }
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
            if (m->bits == 8) NAME(tile)(m, &chunk, row - first, some, out, 8, m->block);
            else if (m->block == 32) NAME(tile)(m, &chunk, row - first, some, out, 4, 32);
            else NAME(tile)(m, &chunk, row - first, some, out, 4, m->block);
            for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) {
                const int of = row + i / TILE_TOKENS, t = token + i % TILE_TOKENS;
                float *to = y + (size_t)t * m->rows + of;
                if (of < last && t < tokens) *to = out[i] + (add ? *to : 0);
            }
        }
    }
}

/* The largest size in `n` values (a multiple of GROUP), or NaN where one is not finite. */
TARGET static inline float NAME(largest)(const float *x, int n) {
    float sizes[GROUP] = {0}, zeros[GROUP] = {0}, largest = 0, spoiled = 0;
    for (int i = 0; i < n; i += GROUP)
        for (int j = 0; j < GROUP; j++) {
            const float size = fabsf(x[i + j]);
            sizes[j] = size > sizes[j] ? size : sizes[j];
            zeros[j] += x[i + j] * 0.0f;
        }
    for (int j = 0; j < GROUP; j++) {
        largest = sizes[j] > largest ? sizes[j] : largest;
        spoiled += zeros[j];
    }
    return largest + spoiled;
}

/* Codes of GROUP values in steps of 1 / inverse; their sum. */
TARGET static inline int32_t NAME(codes)(const float *x, float inverse, int16_t *codes) {
    int32_t sum = 0;
    for (int j = 0; j < GROUP; j++) {
        const float scaled = x[j] * inverse;
        codes[j] = (int16_t)(int32_t)(scaled + copysignf(0.5f, scaled));
        sum += codes[j];
    }
    return sum;
}

/* One token, x = scale * code, as the matrix asks for it: 16 bits and one scale where the weights
 * have 8 bits; 8 bits and a scale a block where they have 4, of every FOURS the even ones first.
 * What is not finite makes the scale, and so every product, not finite. */
TARGET static void NAME(quantize)(const Matrix *m, const float *x, Activations *out, int token,
                                  void *scratch) {
    if (m->inputs < m->columns) {
        memcpy(scratch, x, sizeof(float) * m->inputs);
        memset((float *)scratch + m->inputs, 0, sizeof(float) * (m->columns - m->inputs));
        x = scratch;
    }
    const int block = m->block, blocks = m->columns / block, in_unit = unit_of(m->bits, block) / block;
    const Activations to = of_token(m, out, token);
    memset(to.starts, 0, sizeof(int32_t) * INTS * blocks);
    for (int i = 0; i < padded(blocks); i++) to.scales[i] = to.sums[i] = 0;
    if (m->bits == 4 && m->columns % FOURS) memset(bytes_of(&to) + m->columns - GROUP, 0, FOURS);
    const float of_all = m->bits == 8 ? NAME(largest)(x, m->columns) : 0;
    for (int b = 0; b < blocks; b++) {
        const float largest = m->bits == 8 ? of_all : NAME(largest)(x + b * block, block);
        const float most = m->bits == 8 ? 32767.0f : 127.0f, scale = largest / most;
        const float inverse = largest > 0 && scale < INFINITY ? most / largest : 0;
        int32_t total = 0;
        for (int i = b * block; i < (b + 1) * block; i += GROUP) {
            int16_t codes[GROUP] = {0};
            if (inverse > 0) total += NAME(codes)(x + i, inverse, codes);
            if (m->bits == 8) {
                memcpy(to.codes + i, codes, sizeof codes);
                continue;
            }
            int8_t *even = bytes_of(&to) + i / FOURS * FOURS + i % FOURS / 2, *odd = even + FOURS / 2;
            for (int j = 0; j < GROUP / 2; j++) {
                even[j] = (int8_t)codes[2 * j];
                odd[j] = (int8_t)codes[2 * j + 1];
            }
        }
        to.scales[b] = scale;
        to.sums[b] = (m->bits == 8 ? 1.0f : scale) * (float)total;
        if (!m->zeros)
            to.starts[b / in_unit * INTS + b % in_unit * HALF] = -(1 << (m->bits - 1)) * total;
    }
}

/* The row of an embedding. */
TARGET static void NAME(lookup)(const Matrix *m, size_t row, float *out, void *scratch) {
    const uint8_t *codes = m->codes + row * ((size_t)m->columns * m->bits / 8);
    float *scales = scratch;
    for (int i = 0; i < m->columns / m->block; i += FLOATS)
        NAME(storef)(scales + i, NAME(scales)(m, row, i));
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
#undef Shorts
#undef Fours
#undef Floats
#undef NAME
#undef TARGET
#undef LANES
#undef INTS
#undef FLOATS
#undef HALF
