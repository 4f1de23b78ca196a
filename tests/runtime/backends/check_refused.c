/* What the engine refuses: plans, numbers and calls. Built and run by test_native_kernels.py;
 * writes what is wrong, and exits with 1. */
#include "../../../native/table.h"
#include "engine_checks.h"

typedef struct {
    const char *says;
    size_t at;   /* of a field of the plan */
    int of_layer; /* of the last layer's */
    int size;    /* of the field */
    int64_t value;
} Change;

#define OF_PLAN(field, value, says)                                                               \
    {says, offsetof(ModelPlan, field), 0, sizeof(((ModelPlan *)0)->field), value}
#define OF_LAYER(field, value, says)                                                              \
    {says, offsetof(LayerPlan, field), 1, sizeof(((LayerPlan *)0)->field), value}

static const Change CHANGES[] = {
    OF_PLAN(layer_count, 0, "layers is 0; allowed is 1 to 1024"),
    OF_PLAN(layer_count, 1025, "layers is 1025;"),
    OF_PLAN(layer_count, 3, "the number of layers' plans is 2; allowed is 3 to 3"),
    OF_PLAN(layer_plans, 1, "the number of layers' plans is 1; allowed is 2 to 2"),
    OF_PLAN(heads, 0, "heads is 0;"),
    OF_PLAN(heads, 1025, "heads is 1025;"),
    OF_PLAN(heads, 1, "the number of gammas is 2; allowed is 1 to 1"),
    OF_PLAN(heads, 3, "the number of gammas is 2;"),
    OF_PLAN(gamma_count, 1, "the number of gammas is 1; allowed is 2 to 2"),
    OF_PLAN(frequency_count, 4, "the number of thetas is 4; allowed is 5 to 5"),
    OF_PLAN(frequency_count, 6, "the number of thetas is 6;"),
    OF_PLAN(key_dim, 0, "key_head_dim is 0; allowed is 2 to 16777216"),
    OF_PLAN(key_dim, 11, "key_head_dim is 11; rotary pairs need an even number"),
    OF_PLAN(key_dim, -2147483647 - 1, "key_head_dim is -2147483648;"),
    OF_PLAN(value_dim, 0, "value_head_dim is 0; allowed is 1 to 16777216"),
    OF_PLAN(value_dim, 15, "layer 0: head_norm has 56 bytes; its shape needs 60"),
    OF_PLAN(value_dim, 16777217, "value_head_dim is 16777217;"),
    OF_PLAN(d_model, 0, "d_model is 0;"),
    OF_PLAN(d_model, 49, "embedding is [61, 48]; the model says [61, 49]"),
    OF_PLAN(d_model, 16777217, "d_model is 16777217;"),
    OF_PLAN(ffn_dim, 0, "ffn_dim is 0;"),
    OF_PLAN(ffn_dim, 38, "layer 0 inner is [74, 48]; the model says [76, 48]"),
    OF_PLAN(ffn_dim, 16777217, "ffn_dim is 16777217;"),
    OF_PLAN(ffn_dim, 16777216, "layer 0 inner is 33554432; allowed is 1 to 16777216"),
    OF_PLAN(gated, 0, "layer 0 inner is [74, 48]; the model says [37, 48]"),
    OF_PLAN(vocab_size, 0, "vocab_size is 0;"),
    OF_PLAN(vocab_size, 60, "embedding is [61, 48]; the model says [60, 48]"),
    OF_PLAN(vocab_size, 62, "embedding is [61, 48]; the model says [62, 48]"),
    OF_PLAN(vocab_size, 16777217, "vocab_size is 16777217;"),
    OF_PLAN(weights.size, 100, "lies at byte"),
    OF_PLAN(weights.data, 0, "lies at byte"),
    OF_PLAN(own.size, 1, "lies at byte"),
    OF_PLAN(layers, 0, "a part is missing"),
    OF_PLAN(gammas, 0, "a part is missing"),
    OF_PLAN(frequencies, 0, "a part is missing"),
    OF_PLAN(final_norm.size, 188, "model: final_norm has 188 bytes; its shape needs 192"),
    OF_PLAN(final_norm.offset, 2, "model: final_norm lies at byte 2; its numbers need a multiple"),
    OF_PLAN(final_norm.offset, -4, "model: final_norm lies at byte 18446744073709551612,"),
    OF_PLAN(embedding.rows, 60, "embedding is [60, 48]; the model says [61, 48]"),
    OF_PLAN(embedding.bits, 5, "embedding has 5 bits; allowed are 4 and 8"),
    OF_PLAN(embedding.bits, 4, "embedding: codes has 3904 bytes; its shape needs 1952"),
    OF_PLAN(embedding.codes.offset, 1 << 30, "embedding: codes lies at byte 1073741824"),
    OF_PLAN(head.inputs, 47, "head is [61, 47]; the model says [61, 48]"),
    OF_PLAN(head.block, 0, "head has blocks of 0; allowed are 32, 64, 128 and 256"),
    OF_PLAN(head.block, 96, "head has blocks of 96;"),
    OF_PLAN(head.block, 512, "head has blocks of 512;"),
    OF_PLAN(head.block, 128, "head: codes has 3904 bytes; its shape needs 7808"),
    OF_PLAN(head.codes.offset, -1, "head: codes lies at byte 18446744073709551615"),
    OF_PLAN(head.codes.own, 1, "head: codes lies at byte"),
    OF_PLAN(head.half_scales, 1, "head: scales has 488 bytes; its shape needs 244"),
    OF_PLAN(head.scales.offset, 6, "head: scales lies at byte 6; its numbers need a multiple of 4"),
    OF_PLAN(head.own_zeros, 1, "head: zeros has 0 bytes; its shape needs 122"),
    OF_LAYER(qkvg.rows, 95, "layer 1 qkvg is [95, 48]; the model says [96, 48]"),
    OF_LAYER(out.inputs, 27, "layer 1 out is [48, 27]; the model says [48, 28]"),
    OF_LAYER(down.inputs, 38, "layer 1 down is [48, 38]; the model says [48, 37]"),
    OF_LAYER(inner.block, 160, "layer 1 inner has blocks of 160;"),
    OF_LAYER(ffn_norm.size, 0, "layer 1: ffn_norm has 0 bytes; its shape needs 192"),
    OF_LAYER(retention_norm.offset, 1, "layer 1: retention_norm lies at byte 1;"),
    OF_LAYER(head_norm.own, 0, ""), /* elsewhere, and numbers all the same */
};

/* Without an error, or with one of these words. */
static void refused(const SmallModel *m, const char *says) {
    char sentence[256], cut[8];
    Model model;
    const int status = check_plan(&m->plan, &model, sentence, sizeof sentence);
    if (!*says) {
        expect(status == RETNET_OK || status == RETNET_BAD_FILE, "a status", "refused");
        free_model(&model);
        return;
    }
    expect(status == RETNET_BAD_FILE, says, "not refused");
    expect(strstr(sentence, says) != NULL, says, sentence);
    expect(!model.layers && !model.gammas, says, "a model all the same");
    expect(check_plan(&m->plan, &model, NULL, 0) == status, says, "without words");
    expect(check_plan(&m->plan, &model, cut, sizeof cut) == status && !cut[7], says, "few words");
}

static void set_float(SmallModel *m, const Place *p, uint64_t at, uint32_t bits, int bytes) {
    memcpy((p->own ? m->own : m->weights) + p->offset + at, &bits, (size_t)bytes);
}

static void check_plans(void) {
    for (size_t i = 0; i < sizeof CHANGES / sizeof *CHANGES; i++) {
        uint64_t seed = 21;
        SmallModel m;
        make_small(&m, &BASE, &seed);
        char *field = (CHANGES[i].of_layer ? (char *)&m.layers[1] : (char *)&m.plan) + CHANGES[i].at;
        memcpy(field, &CHANGES[i].value, (size_t)CHANGES[i].size); /* little-endian */
        refused(&m, CHANGES[i].says);
        free_small(&m);
    }
    const double bad_gammas[] = {0, -0.5, 1.0000001, NAN, INFINITY};
    for (int i = 0; i < 5; i++) {
        uint64_t seed = 22;
        SmallModel m;
        make_small(&m, &BASE, &seed);
        m.gammas[1] = bad_gammas[i];
        refused(&m, "a decay lies in (0, 1]");
        m.gammas[1] = 0.5;
        m.frequencies[4] = i % 2 ? NAN : -INFINITY;
        refused(&m, "thetas holds what is no finite number");
        m.frequencies[4] = 0;
        float *eps = i % 2 ? &m.plan.norm_eps : &m.plan.head_norm_eps;
        *eps = (float)bad_gammas[i];
        refused(&m, i % 2 ? "norm_eps is" : "head_norm_eps is");
        *eps = 1;
        const uint32_t bits = i % 2 ? 0x7f800000 : 0xffc00000; /* inf, NaN */
        const Place *odd[] = {&m.plan.final_norm, &m.layers[1].head_norm, &m.plan.head.scales,
                              &m.layers[0].down.scales, &m.layers[1].retention_norm};
        set_float(&m, odd[i], odd[i]->size - 4, bits, 4);
        refused(&m, "holds what is no finite number");
        free_small(&m);
    }
    Shape halves = BASE;
    halves.half = 1;
    uint64_t seed = 23;
    SmallModel m;
    make_small(&m, &halves, &seed);
    set_float(&m, &m.plan.head.scales, m.plan.head.scales.size - 2, 0xfc00, 2);
    refused(&m, "head: scales holds what is no finite number");
    set_float(&m, &m.plan.head.scales, m.plan.head.scales.size - 2, 0xfbff, 2);
    m.layers[0].out.scales.offset += 1;
    refused(&m, "its numbers need a multiple of 2");
    free_small(&m);
}

/* Numbers of the table's header, and where its parts lie. */
static void check_tables(void) {
    static const struct {
        const char *says;
        size_t at;
        int size;
        uint64_t value;
    } changes[] = {
#define OF_TABLE(field, value, says) \
    {says, offsetof(retnet_table_header, field), sizeof(((retnet_table_header *)0)->field), value}
        OF_TABLE(version, 2, "its version is 2, with records of 328 and 456 bytes; this library reads 1,"),
        OF_TABLE(header_bytes, 320, "its version is 1, with records of 320 and 456 bytes;"),
        OF_TABLE(layer_bytes, 464, "its version is 1, with records of 328 and 464 bytes;"),
        OF_TABLE(flags, 8, "it asks for what this library does not know: flags 8, decay 0, conv"),
        OF_TABLE(decay, 1, "decay 1, convolution 0"),
        OF_TABLE(conv_width, 4, "decay 0, convolution 4"),
        OF_TABLE(reserved, 1, "it asks for what this library does not know"),
        OF_TABLE(table_bytes, 100, ", and says 100"),
        OF_TABLE(layers_offset, 12, "2 layers lie at byte 12 of a table of"),
        OF_TABLE(layers_offset, UINT64_MAX - 7, "2 layers lie at byte 18446744073709551608"),
        OF_TABLE(layer_count, 1 << 30, "1073741824 layers lie at byte 328"),
        OF_TABLE(layer_count, (uint64_t)-1, "-1 layers lie at byte 328"),
        OF_TABLE(gammas_offset, 1 << 20, "2 gammas lie at byte 1048576"),
        OF_TABLE(frequencies_offset, 4, "5 frequencies lie at byte 4"),
        OF_TABLE(key_dim, (uint64_t)-8, "-4 frequencies lie"),
        OF_TABLE(own_bytes, UINT64_MAX, "own bytes lie at byte"),
        OF_TABLE(own_offset, 1 << 24, "own bytes lie at byte 16777216"),
        OF_TABLE(heads, 0, "heads is 0; allowed is 1 to 1024"),
#undef OF_TABLE
    };
    uint64_t seed = 24;
    SmallModel m;
    make_small(&m, &BASE, &seed);
    const uint8_t print[RETNET_FINGERPRINT_BYTES] = {0};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        uint64_t size;
        uint64_t *table = small_table(&m, &size);
        memcpy((char *)table + changes[i].at, &changes[i].value, (size_t)changes[i].size);
        retnet_model *model = (retnet_model *)(void *)table;
        retnet_error error;
        expect(retnet_model_open_parts(table, size, m.weights, m.plan.weights.size, print, &model,
                                       &error) == RETNET_BAD_FILE, changes[i].says, "not refused");
        expect(strstr(error.message, changes[i].says) && !strncmp(error.message, "model table: ", 13),
               changes[i].says, error.message);
        expect(!model && error.code == RETNET_BAD_FILE && !error.offset, changes[i].says, "an error");
        free(table);
    }
    uint64_t size;
    uint64_t *table = small_table(&m, &size);
    retnet_model *model;
    for (uint64_t cut = 0; cut < size; cut += cut < 400 ? 8 : 97)
        expect(retnet_model_open_parts(table, cut, m.weights, m.plan.weights.size, print, &model,
                                       NULL) == RETNET_BAD_FILE, "a cut table", "not refused");
    expect(retnet_model_open_parts(NULL, size, m.weights, 1, print, &model, NULL) ==
                   RETNET_BAD_BUFFER &&
               retnet_model_open_parts(table, size, NULL, 1, print, &model, NULL) ==
                   RETNET_BAD_BUFFER &&
               retnet_model_open_parts((char *)table + 4, size - 4, m.weights, 1, print, &model,
                                       NULL) == RETNET_BAD_BUFFER,
           "a buffer", "not refused");
    free(table);
    free_small(&m);
}

/* Many layers in one place: opening would take as long as that many models. */
static void check_layers_in_one_place(void) {
    enum { MANY = 9 };
    uint64_t seed = 25;
    SmallModel m;
    Model model;
    LayerPlan layers[MANY];
    char sentence[256];
    make_small(&m, &BASE, &seed);
    for (int i = 0; i < MANY; i++) layers[i] = m.layers[1];
    m.plan.layers = layers;
    m.plan.layer_count = m.plan.layer_plans = MANY;
    expect(check_plan(&m.plan, &model, sentence, sizeof sentence) == RETNET_BAD_FILE &&
               strstr(sentence, "; at most twice what is there is allowed, "), "in one place", sentence);
    m.plan.layer_count = m.plan.layer_plans = 3;
    m.plan.head = m.plan.embedding;
    expect(check_plan(&m.plan, &model, sentence, sizeof sentence) == RETNET_OK, "tied", sentence);
    free_model(&model);
    free_small(&m);
}

#if !defined(_WIN32) /* where names are UTF-16, and one that is no UTF-8 cannot be asked for */
/* What a file is called may be anything; what is said of it is UTF-8 without control characters. */
static void check_sentences(void) {
    static const char *const names[][2] = {
        {"/no/a\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82z", "/no/a\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82z cannot be opened: there is no"},
        {"/no/a\nb\x1b[2J\x7f", "/no/a?b?[2J? cannot"},
        {"/no/\xc2\x9b\xc2\xa0", "/no/??\xc2\xa0 cannot"},
        {"/no/\xff\x80\xc3", "/no/??? cannot"},
        {"/no/\xc0\x80\xe0\x80\x80\xf0\x80\x80\x80", "/no/????????? cannot"},
        {"/no/\xed\xa0\x80\xf4\x90\x80\x80\xfe", "/no/???????? cannot"}};
    char longest[400];
    retnet_model *model;
    retnet_error error;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        expect(retnet_model_open(names[i][0], 0, &model, &error) == RETNET_NO_FILE && !model,
               "a file that is none", "sentences");
        expect(!strncmp(error.message, names[i][1], strlen(names[i][1])), error.message,
               "another sentence");
    }
    for (int cut = 0; cut < 4; cut++) { /* a name that is cut off in a character */
        memset(longest, 0, sizeof longest);
        memset(longest, 'a', 160 - (size_t)cut);
        strcat(longest, "\xf0\x9f\x99\x82");
        expect(retnet_model_open(longest, 0, &model, &error) == RETNET_NO_FILE &&
                   !strncmp(error.message + 160 - cut, &"??? "[3 - cut], (size_t)cut + 1),
               error.message, "a cut name");
    }
}
#else
static void check_sentences(void) {}
#endif

static void check_calls(void) {
    uint64_t seed = 31;
    SmallModel m;
    make_small(&m, &BASE, &seed);
    Opened o;
    expect(!open_small(&m, &o, NULL), "a plan", "calls");
    retnet_session *session;
    retnet_error error;
    for (int threads = -1; threads <= 100000; threads = threads ? threads * 20 + 20 : 257)
        if (threads < 1 || threads > RETNET_MOST_THREADS) {
            expect(retnet_session_new(o.model, threads, NULL, &session, &error) ==
                           RETNET_BAD_THREADS && !session && error.code == RETNET_BAD_THREADS,
                   "a number of threads", "refused");
            expect(strstr(error.message, "; allowed is 1 to 256") != NULL, "threads", error.message);
        }
    expect(!retnet_session_new(o.model, RETNET_MOST_THREADS, NULL, &session, NULL), "256 threads",
           "refused");
    retnet_session_free(session);
    expect(retnet_session_new(o.model, 1, "sse9", &session, &error) == RETNET_NO_KERNELS &&
               !session && strstr(error.message, "has no kernels sse9"), "kernels", error.message);
    expect(retnet_session_free(NULL) == RETNET_OK, "nothing to free", "freed");
    Run r = new_run(o.model, &m.plan, 2, NULL, 0), before = new_run(o.model, &m.plan, 2, NULL, 0);
    int32_t many[RETNET_MOST_TOKENS + 1] = {0};
    const int32_t low[] = {0, -1}, high[] = {0, BASE.vocab}, good[] = {BASE.vocab - 1, 0};
    const uint64_t bytes = all_states(&m.plan) * sizeof(float);
    expect(!feed(&r, good, 2) && !feed(&before, good, 2), "a status", "calls");
    expect(feed(&r, good, 0) == RETNET_BAD_COUNT, "0 tokens", "refused");
    expect(feed(&r, good, -1) == RETNET_BAD_COUNT, "-1 tokens", "refused");
    expect(feed(&r, many, RETNET_MOST_TOKENS + 1) == RETNET_BAD_COUNT, "4097 tokens", "refused");
    expect(feed(&r, NULL, 1) == RETNET_BAD_COUNT, "no tokens", "refused");
    expect(feed(&r, low, 2) == RETNET_BAD_TOKEN, "token -1", "refused");
    expect(feed(&r, high, 2) == RETNET_BAD_TOKEN, "token 61", "refused");
    float *copy = malloc(bytes + 4);
    memcpy(copy, r.states, bytes);
    const retnet_status bad_sets[] = {
        retnet_session_set_states(r.session, NULL, bytes, 0, NULL, 0),
        retnet_session_set_states(r.session, copy, bytes - 4, 0, NULL, 0),
        retnet_session_set_states(r.session, copy, bytes + 4, 0, NULL, 0),
        retnet_session_set_states(r.session, (float *)(void *)((char *)copy + 2), bytes, 0, NULL, 0),
        retnet_session_get_states(r.session, NULL, bytes),
        retnet_session_get_states(r.session, copy, bytes - 4),
        retnet_session_get_states(r.session, copy, bytes + 4)};
    for (int i = 0; i < 7; i++) expect(bad_sets[i] == RETNET_BAD_BUFFER, "states", "refused");
    expect(retnet_session_set_states(r.session, copy, bytes, -1, NULL, 0) == RETNET_BAD_POSITION,
           "position -1", "refused");
    expect(retnet_session_set_states(r.session, copy, bytes, 0, low, 2) == RETNET_BAD_TOKEN &&
               retnet_session_set_states(r.session, copy, bytes, 0, high, 2) == RETNET_BAD_TOKEN &&
               retnet_session_set_states(r.session, copy, bytes, 0, NULL, 2) == RETNET_BAD_COUNT &&
               retnet_session_set_states(r.session, copy, bytes, 0, good, -1) == RETNET_BAD_COUNT,
           "what was seen", "refused");
    expect(same_bits(&r, &before), "a refused call changed something", "calls");
    expect(!retnet_session_set_states(r.session, copy, bytes, INT64_MAX - 3, good, 1), "states",
           "calls");
    expect(!retnet_session_logits(r.session) && retnet_session_seen(r.session)[BASE.vocab - 1] &&
               !retnet_session_seen(r.session)[0], "logits or tokens of another sequence", "calls");
    expect(!feed(&r, good, 2), "a late position", "calls");
    expect(feed(&r, good, 2) == RETNET_BAD_POSITION, "beyond the last position", "calls");
    expect(!retnet_session_reset(r.session) && !feed(&r, many, RETNET_MOST_TOKENS),
           "the most tokens", "calls");
    free(copy);
    free_run(&r), free_run(&before);
    /* gammas, frequencies and layers were copied */
    Run one = new_run(o.model, &m.plan, 1, NULL, 5), other = new_run(o.model, &m.plan, 1, NULL, 5);
    expect(!feed(&one, good, 2), "a status", "copies");
    retnet_table_header h;
    memcpy(&h, o.table, sizeof h);
    memset(o.table, 0xff, h.own_offset);
    expect(!feed(&other, good, 2), "a status", "copies");
    expect(same_bits(&one, &other), "what was to be copied", "copies");
    free_run(&one), free_run(&other);
    close_small(&o);
    free_small(&m);
}

int main(void) {
    check_plans();
    check_tables();
    check_layers_in_one_place();
    check_sentences();
    check_calls();
    return failures > 0;
}
