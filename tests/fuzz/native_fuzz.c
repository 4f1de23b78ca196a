/* The C engine on models, weights, states and calls that nobody would write: bytes decide what is
 * changed, and a sanitizer sees what comes of it. `native_fuzz.py` builds and runs it.
 *
 * Tables and weights are as large as is said (a library cannot know better); all else may be
 * anything. Every model is refused in a sentence or runs, and every call too. With -DLIBFUZZER the
 * bytes are libFuzzer's, else those of a seed: `native_fuzz CASES SEED SECONDS`. */
#include "../runtime/backends/small_model.h"
#include "fuzz_input.h"

static long long refused, ran;

static void change_float(Input *in, float *x) {
    const uint32_t bits = odd_float(in);
    memcpy(x, &bits, 4);
}

static void change_i32(Input *in, int32_t *x) {
    *x = (int32_t)(uint32_t)odd_number(in, (uint64_t)(int64_t)*x);
}

static void change_place(Input *in, Place *p) {
    switch (below(in, 4)) {
        case 0: p->offset = odd_number(in, p->offset); break;
        case 1: p->size = odd_number(in, p->size); break;
        case 2: p->own = !p->own; break;
        default: p->offset += (uint64_t)below(in, 9) - 4;
    }
}

static void change_matrix(Input *in, MatrixPlan *m) {
    int32_t *const numbers[] = {&m->rows, &m->inputs, &m->bits, &m->block, &m->half_scales,
                                &m->own_zeros};
    switch (below(in, 6)) {
        case 0: change_place(in, &m->codes); break;
        case 1: change_place(in, &m->scales); break;
        case 2: change_place(in, &m->zeros); break;
        case 3: m->block = 16 * below(in, 40); break;
        default: change_i32(in, numbers[below(in, 6)]);
    }
}

static void change_plan(Input *in, SmallModel *m) {
    ModelPlan *p = &m->plan;
    LayerPlan *l = &m->layers[below(in, SMALL_LAYERS)];
    int32_t *const numbers[] = {&p->layer_count, &p->d_model, &p->heads, &p->key_dim, &p->value_dim,
                                &p->ffn_dim, &p->vocab_size, &p->gated, &p->gelu, &p->eps_z_n};
    Place *const places[] = {&p->final_norm, &l->retention_norm, &l->head_norm, &l->ffn_norm};
    MatrixPlan *const matrices[] = {&p->embedding, &p->head, &l->qkvg, &l->out, &l->inner, &l->down};
    switch (below(in, 12)) {
        case 0: case 1: change_place(in, places[below(in, 4)]); break;
        case 2: case 3: case 4: change_matrix(in, matrices[below(in, 6)]); break;
        case 5: change_float(in, below(in, 2) ? &p->norm_eps : &p->head_norm_eps); break;
        case 6: m->gammas[below(in, SMALL_HEADS)] = odd_double(in); break;
        case 7: m->frequencies[below(in, 8)] = odd_double(in); break;
        case 8: /* fewer than there are */
            p->weights.size = odd_number(in, p->weights.size) % (p->weights.size + 1);
            break;
        case 9: p->own.size = odd_number(in, p->own.size) % (p->own.size + 1); break;
        default: change_i32(in, numbers[below(in, 10)]);
    }
}

/* Scales, norms, codes and zeros: all that lies in the buffers. */
static void change_weights(Input *in, SmallModel *m, uint64_t weights, uint64_t own) {
    const int inside = below(in, 2);
    uint8_t *bytes = inside ? m->own : m->weights;
    const uint64_t size = inside ? own : weights, at = next(in, 3) % (size / 4) * 4;
    const uint32_t bits = odd_float(in);
    memcpy(bytes + at, &bits, 4);
}

static Shape any_shape(Input *in) {
    Shape s = {.layers = 1 + below(in, SMALL_LAYERS), .d_model = 1 + below(in, 90),
               .heads = 1 + below(in, SMALL_HEADS), .key_dim = 2 + 2 * below(in, 8),
               .value_dim = 1 + below(in, 20), .ffn_dim = 1 + below(in, 80),
               .vocab = 1 + below(in, 60), .gated = below(in, 2), .gelu = below(in, 2),
               .eps_z_n = below(in, 2), .norm_eps = 1e-5f, .head_norm_eps = 1e-3f};
    if (below(in, 4) == 0) { /* all matrices alike, in blocks that may be none */
        s.bits = below(in, 2) ? 8 : 4;
        s.block = below(in, 2) ? 32 * (1 + below(in, 9)) : 32 << below(in, 4);
        s.half = below(in, 2), s.own_zeros = below(in, 2);
    }
    return s;
}

/* Tokens, most of them some of the vocabulary; how many, most often as many as there are. */
static int64_t any_tokens(Input *in, int vocabulary, int32_t tokens[20]) {
    int64_t count = 1 + below(in, 20);
    for (int i = 0; i < 20; i++) tokens[i] = below(in, vocabulary);
    if (!below(in, 12)) tokens[below(in, 20)] = (int32_t)odd_number(in, (uint64_t)vocabulary);
    if (!below(in, 12)) {
        count = (int64_t)odd_number(in, (uint64_t)count);
        if (count > 20 && count <= RETNET_MOST_TOKENS) count = 20;
    }
    return count;
}

/* States, a position and tokens, with as much memory as is said, which need not be as much as it
 * should be. `changed`: the model or a state was, so that logits need not be numbers. */
static void call(Input *in, retnet_session *session, const retnet_model_info *info,
                 int *changed) {
    uint64_t size = info->state_bytes;
    if (!below(in, 12)) size = odd_number(in, size) % 4096;
    float *states = malloc(size ? size : 1);
    if (size) memset(states, 0, size);
    for (int j = below(in, 8) - 5; j > 0 && size >= 4; j--, *changed = 1)
        change_float(in, &states[next(in, 2) % (size / 4)]);
    int64_t position = below(in, 5000);
    if (!below(in, 8)) position = (int64_t)odd_number(in, (uint64_t)position);
    int32_t tokens[20];
    const int32_t seen = below(in, 24) ? below(in, 4) : -1;
    any_tokens(in, info->vocab_size, tokens);
    const int64_t before = retnet_session_position(session);
    retnet_status status = retnet_session_set_states(session, states, size, position, tokens, seen);
    must(status == RETNET_OK || (status >= RETNET_BAD_COUNT && status <= RETNET_BAD_BUFFER),
         "states' status");
    must(retnet_session_position(session) == (status ? before : position), "a position");
    const int64_t count = any_tokens(in, info->vocab_size, tokens);
    const int64_t from = retnet_session_position(session);
    status = retnet_session_feed(session, tokens, count);
    must(status == RETNET_OK || (status >= RETNET_BAD_COUNT && status <= RETNET_BAD_POSITION),
         "a call's status");
    must(retnet_session_position(session) == (status ? from : from + count), "what was fed");
    const float *logits = retnet_session_logits(session);
    must(status || logits, "logits");
    if (status == RETNET_OK && !*changed)
        for (int i = 0; i < info->vocab_size; i++) must(isfinite(logits[i]), "a finite logit");
    retnet_session_get_states(session, states, size);
    free(states);
}

/* Sessions on a model that was opened. */
static void use(Input *in, retnet_model *model, int changed) {
    const char *const kernels[] = {NULL, "avx512", "avx2", "neon", "plain"};
    retnet_model_info info;
    retnet_model_get_info(model, &info);
    must(info.vocab_size > 0 && info.layers > 0 && info.drawable == info.vocab_size, "an info");
    int threads = 1 + below(in, 8) / 7;
    if (!below(in, 40)) threads = (int)(int32_t)odd_number(in, 256);
    if (threads > 4 && threads <= RETNET_MOST_THREADS) threads = 4;
    retnet_session *session, *second = NULL;
    retnet_error error;
    const retnet_status status =
        retnet_session_new(model, threads, kernels[below(in, 5)], &session, &error);
    must_tell(status, &error, 0);
    must(!status == (session != NULL), "a session or a refusal");
    must(status == RETNET_OK || status == RETNET_BAD_THREADS || status == RETNET_NO_KERNELS,
         "a session's status");
    if (!session) return;
    for (int i = 1 + below(in, 2); i; i--) call(in, session, &info, &changed);
    if (!below(in, 8)) must(!retnet_session_fork(session, &second, &error), "a fork");
    if (second) call(in, second, &info, &changed);
    must(!retnet_session_free(second) && !retnet_session_free(session), "sessions that end");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const uint8_t fingerprint[RETNET_FINGERPRINT_BYTES];
    Input in = {data, data + size};
    begin_case();
    uint64_t seed = next(&in, 4), table_size;
    const Shape shape = any_shape(&in);
    SmallModel *m = calloc(1, sizeof *m);
    make_small(m, &shape, &seed);
    const uint64_t weights = m->plan.weights.size, own = m->plan.own.size;
    const int plans = below(&in, 3) ? 0 : 1 + below(&in, 3), bytes = below(&in, 4);
    for (int i = 0; i < plans; i++) change_plan(&in, m);
    for (int i = 0; i < bytes; i++) change_weights(&in, m, weights, own);
    uint64_t *table = small_table(m, &table_size);
    retnet_model *model;
    retnet_error error;
    const retnet_status status = retnet_model_open_parts(
        table, table_size, m->weights, m->plan.weights.size, fingerprint, &model, &error);
    must_tell(status, &error, table_size);
    must(!status == (model != NULL), "a model or a refusal");
    must(status == RETNET_OK || status == RETNET_BAD_FILE, "a model's status");
    if (model) {
        ran++;
        use(&in, model, plans || bytes);
        retnet_model_close(model);
    } else refused++;
    free(table);
    free_small(m);
    free(m);
    return 0;
}

#ifndef LIBFUZZER
static void one(Input *in) { LLVMFuzzerTestOneInput(in->at, (size_t)(in->end - in->at)); }

int main(int count, char **words) {
    const long long cases = run_seeds(count, words, one);
    printf("%lld cases: %lld models ran, %lld were refused\n", cases, ran, refused);
    return 0;
}
#endif
