/* What one thread does with rows of numbers, for one instruction set: the header isa_*.h that was
 * included before gives NAME, TARGET, LANES and the vectors. */

#define Ints NAME(Ints)
#define Floats NAME(Floats)

/* Scales of a row as float32: where they lie, or widened into `buffer`. */
TARGET static const float *NAME(row_scales)(const Matrix *m, size_t row, float *buffer) {
    int blocks = m->columns / m->block;
    if (!m->half_scales) return (const float *)m->scales + row * blocks;
    NAME(widen_halves)((const uint16_t *)m->scales + row * blocks, buffer, blocks);
    return buffer;
}

TARGET static inline Ints NAME(group)(Ints sum, const uint8_t *codes, const int16_t *x, int bits) {
    if (bits == 8) {
        for (int i = 0; i < GROUP; i += LANES)
            sum = NAME(dot)(sum, NAME(wide8)(codes + i), NAME(load)(x + i));
    } else {
        Ints v[GROUP / LANES];
        NAME(wide4)(codes, v);
        for (int i = 0; i < GROUP / LANES; i++)
            sum = NAME(dot)(sum, v[i], NAME(load)(x + i * LANES));
    }
    return sum;
}

/* s * zero of every block of a row with zero points of its own, padded with zeros. */
TARGET static void NAME(levels)(const Matrix *m, size_t row, const float *scales, float *out) {
    const int blocks = m->columns / m->block, bytes = (blocks * m->bits + 7) / 8;
    const uint8_t *zeros = m->zeros + row * (size_t)bytes;
    for (int i = 0; m->bits == 8 && i < blocks; i++) out[i] = zeros[i];
    for (int i = 0; m->bits == 4 && i < blocks; i += 8) {
        uint32_t eight = 0;
        if (i + 8 <= blocks) memcpy(&eight, zeros + i / 2, 4);
        else memcpy(&eight, zeros + i / 2, (size_t)(bytes - i / 2));
        for (int j = 0; j < 8; j++) out[i + j] = (float)(int32_t)(eight >> 4 * j & 15);
    }
    for (int i = 0; i < blocks; i++) out[i] *= scales[i];
    for (int i = blocks; i < padded(blocks); i++) out[i] = 0;
}

/* The sum over a row less what its zero points add to it, times the token's scale. */
TARGET static inline float NAME(result)(const Matrix *m, Floats sum, const float *levels,
                                        const Activations *x) {
    Floats part = NAME(none)();
    if (m->zeros)
        for (int i = 0; i < m->columns / m->block; i += FLOATS)
            part = NAME(plus)(part, NAME(loadf)(levels + i), NAME(loadf)(x->sums + i));
    return x->scales[0] * NAME(total)(NAME(minus)(sum, part));
}

/* Rows `row`, `row` + apart, … times one token: scale * sum over blocks of s (code - zero) . x.
 * They share what is read of x. bits, block: the matrix's, as constants. */
TARGET static inline __attribute__((always_inline)) void NAME(some_rows)(
    const Matrix *m, size_t row, size_t apart, const Activations *x, float y[AT_ONCE],
    const int bits, const int block, float *buffer) {
    const int blocks = m->columns / block, bytes = GROUP * bits / 8;
    const size_t row_bytes = (size_t)m->columns * bits / 8;
    const uint8_t *at[AT_ONCE];
    const float *scales[AT_ONCE];
    Floats sums[AT_ONCE];
    for (int r = 0; r < AT_ONCE; r++) {
        const size_t found = row + r * apart;
        at[r] = m->codes + found * row_bytes;
        scales[r] = NAME(row_scales)(m, found, buffer + r * padded(blocks));
        sums[r] = NAME(none)();
    }
    const int16_t *codes = x->codes;
    for (int i = 0; i < blocks; i++) {
        Ints parts[AT_ONCE];
        UNROLLED for (int r = 0; r < AT_ONCE; r++)
            parts[r] = NAME(load_ints)(x->starts + i * INTS);
        for (int j = 0; j < block; j += GROUP, codes += GROUP)
            UNROLLED for (int r = 0; r < AT_ONCE; r++) {
                __builtin_prefetch(at[r] + AHEAD);
                parts[r] = NAME(group)(parts[r], at[r], codes, bits);
                at[r] += bytes;
            }
        UNROLLED for (int r = 0; r < AT_ONCE; r++)
            sums[r] = NAME(scaled)(sums[r], parts[r], scales[r][i]);
    }
    float *levels = buffer + AT_ONCE * padded(blocks);
    for (int r = 0; r < AT_ONCE; r++) {
        if (m->zeros) NAME(levels)(m, row + r * apart, scales[r], levels);
        y[r] = NAME(result)(m, sums[r], levels, x);
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

/* Codes of a row as int16, in the order of the activations. */
TARGET static void NAME(expand)(const Matrix *m, size_t row, int16_t *out) {
    const uint8_t *codes = m->codes + row * ((size_t)m->columns * m->bits / 8);
    for (int i = 0; i < m->columns; i += GROUP, codes += GROUP * m->bits / 8) {
        Ints v[GROUP / LANES];
        if (m->bits == 8)
            for (int j = 0; j < GROUP / LANES; j++) v[j] = NAME(wide8)(codes + j * LANES);
        else NAME(wide4)(codes, v);
        for (int j = 0; j < GROUP / LANES; j++) NAME(store)(out + i + j * LANES, v[j]);
    }
}

/* TILE_ROWS expanded rows times TILE_TOKENS tokens: out[i] is of row i / TILE_TOKENS and token
 * i % TILE_TOKENS. Every sum is made as `some_rows` makes it, so that a token gives the same bits
 * alone and among others. */
TARGET static inline void NAME(tile)(const Matrix *m, const int16_t *w, const float *scales,
                                     const float *levels, const Activations x[TILE_TOKENS],
                                     float out[TILE_ROWS * TILE_TOKENS]) {
    const int columns = m->columns, block = m->block, blocks = columns / block;
    Floats sums[TILE_ROWS * TILE_TOKENS];
    UNROLLED for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) sums[i] = NAME(none)();
    for (int b = 0; b < blocks; b++) {
        Ints parts[TILE_ROWS * TILE_TOKENS];
        UNROLLED for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++)
            parts[i] = NAME(load_ints)(x[i % TILE_TOKENS].starts + b * INTS);
        for (int k = b * block; k < (b + 1) * block; k += LANES) {
            Ints v[TILE_TOKENS];
            UNROLLED for (int t = 0; t < TILE_TOKENS; t++) v[t] = NAME(load)(x[t].codes + k);
            UNROLLED for (int r = 0; r < TILE_ROWS; r++) {
                Ints of_row = NAME(load)(w + r * columns + k);
                UNROLLED for (int t = 0; t < TILE_TOKENS; t++) {
                    Ints *part = &parts[r * TILE_TOKENS + t];
                    *part = NAME(dot)(*part, of_row, v[t]);
                }
            }
        }
        UNROLLED for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++)
            sums[i] = NAME(scaled)(sums[i], parts[i], scales[i / TILE_TOKENS * blocks + b]);
    }
    UNROLLED for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++)
        out[i] = NAME(result)(m, sums[i], levels + i / TILE_TOKENS * padded(blocks),
                              &x[i % TILE_TOKENS]);
}

/* Rows first … last - 1 times `tokens` tokens; y [tokens, rows]. */
TARGET static void NAME(rows_by_tokens)(const Matrix *m, int first, int last, const Activations *x,
                                        int tokens, float *y, int add, void *scratch) {
    const int columns = m->columns, blocks = columns / m->block;
    int16_t *w = scratch;
    float *scales = (float *)(w + (size_t)CHUNK_ROWS * columns);
    float *levels = scales + (size_t)CHUNK_ROWS * blocks;
    for (int row = first; row < first + CHUNK_ROWS; row++) {
        int from = row < last ? row : last - 1;
        float *to = scales + (size_t)(row - first) * blocks;
        const float *found = NAME(row_scales)(m, from, to);
        if (found != to) memcpy(to, found, sizeof(float) * blocks);
        if (m->zeros) NAME(levels)(m, from, to, levels + (size_t)(row - first) * padded(blocks));
        NAME(expand)(m, from, w + (size_t)(row - first) * columns);
    }
    for (int token = 0; token < tokens; token += TILE_TOKENS) {
        Activations some[TILE_TOKENS];
        for (int t = 0; t < TILE_TOKENS; t++)
            some[t] = of_token(m, x, token + t < tokens ? token + t : token);
        for (int row = first; row < last; row += TILE_ROWS) {
            float out[TILE_ROWS * TILE_TOKENS];
            const size_t at = (size_t)(row - first);
            NAME(tile)(m, w + at * columns, scales + at * blocks, levels + at * padded(blocks),
                       some, out);
            for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) {
                const int of = row + i / TILE_TOKENS, t = token + i % TILE_TOKENS;
                float *to = y + (size_t)t * m->rows + of;
                if (of < last && t < tokens) *to = out[i] + (add ? *to : 0);
            }
        }
    }
}

/* One token as int16: codes * scale = x, in the order that the matrix's bits ask for. What is not
 * finite makes the scale, and so every product, not finite. */
TARGET static void NAME(quantize)(const Matrix *m, const float *x, Activations *out, int token) {
    const int columns = m->columns, whole = m->inputs / GROUP * GROUP;
    const Activations to = of_token(m, out, token);
    float last[GROUP] = {0}; /* inputs that fill no group */
    memcpy(last, x + whole, sizeof(float) * (m->inputs - whole));
    float sizes[GROUP] = {0}, zeros[GROUP] = {0}, largest = 0, spoiled = 0;
    for (int i = 0; i <= whole; i += GROUP) {
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
    to.scales[0] = largest / 32767.0f + spoiled;
    const int finite = to.scales[0] < INFINITY;
    const float inverse = finite && largest > 0 ? 32767.0f / largest : 0;
    memset(to.sums, 0, sizeof(float) * padded(columns / m->block));
    memset(to.codes, 0, sizeof(int16_t) * columns);
    for (int i = 0; finite && i < m->inputs; i += GROUP) {
        const float *values = i < whole ? x + i : last;
        int16_t group[GROUP];
        int32_t sum = 0;
        for (int j = 0; j < GROUP; j++) {
            float scaled = values[j] * inverse;
            group[j] = (int16_t)(int32_t)(scaled + copysignf(0.5f, scaled));
            sum += group[j];
        }
        to.sums[i / m->block] += (float)sum; /* exact: below 2^24 */
        if (m->bits == 8) memcpy(to.codes + i, group, sizeof group);
        else
            for (int j = 0; j < GROUP / 2; j++) {
                to.codes[i + j] = group[2 * j];
                to.codes[i + GROUP / 2 + j] = group[2 * j + 1];
            }
    }
    memset(to.starts, 0, sizeof(int32_t) * INTS * (columns / m->block));
    for (int i = 0; !m->zeros && i < columns / m->block; i++)
        to.starts[i * INTS] = -(1 << (m->bits - 1)) * (int32_t)to.sums[i];
}

/* The row of an embedding. */
TARGET static void NAME(lookup)(const Matrix *m, size_t row, float *out, void *scratch) {
    int16_t *w = scratch;
    const float *scales = NAME(row_scales)(m, row, (float *)(w + m->columns));
    NAME(expand)(m, row, w);
    for (int i = 0; i < m->inputs; i++) {
        int in_group = i % GROUP;
        int place = m->bits == 8 ? i : i - in_group + in_group % 2 * (GROUP / 2) + in_group / 2;
        out[i] = scales[i / m->block] * (float)(w[place] - zero_point(m, row, i / m->block));
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
