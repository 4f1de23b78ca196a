/* Packed files and state files that somebody has changed: each is refused in a sentence, or is used
 * as a caller would. `native_fuzz.py --target packed` builds and runs it.
 *
 * A case is a file. It is opened as a heap block of exactly its size, so that the address sanitizer
 * sees a read of the byte behind it, and in a share of the cases by path and by descriptor too,
 * which have to say the same. How it is used follows from its bytes. With -DLIBFUZZER files come
 * from libFuzzer, which changes them by `packed_damage.h`; else the same damage follows from a
 * seed: `packed_fuzz CASES SEED SECONDS`. RETNET_FUZZ_FOLDER holds the files that are opened by path (a tmpfs
 * makes that fast); RETNET_FUZZ_TOKENIZER is a tokenizer table for half of the whole files. */
#define _GNU_SOURCE
#include <fcntl.h>

#include "packed_damage.h"
#include "packed_odd_calls.h"

enum { MOST_STATES = 1 << 20, FAR = 4096 };

static struct {
    long long opened, refused, loaded, unloaded;
} told;

static char packed_path[512], state_path[512], saved_path[512];
static int packed_fd = -1, state_fd = -1;
static retnet_model *state_model; /* of seed 0, and what its state files are loaded into */
static File *seeds, *state_file;
static uint8_t tokenizer[MOST_FILE / 2];
static size_t tokenizer_size;

static void write_file(int fd, uint64_t offset, const uint8_t *data, size_t size) {
    must(!ftruncate(fd, (off_t)(offset + size)), "a file of another size");
    must(pwrite(fd, data, size, (off_t)offset) == (ssize_t)size, "a file that is written");
}

/* A heap block of exactly so many bytes, on a cache line. */
static void *exact_copy(const void *data, size_t size) {
    void *copy = NULL;
    must(!posix_memalign(&copy, 64, size ? size : 1), "memory");
    if (size) memcpy(copy, data, size);
    return copy;
}

static uint32_t digest_of(const void *data, uint64_t size) {
    const uint8_t *bytes = data;
    uint32_t found = 2166136261u; /* FNV-1a; reads all of it */
    for (uint64_t i = 0; i < size; i++) found = (found ^ bytes[i]) * 16777619u;
    return found;
}

/* What was opened is what the header's digests say, whoever wrote them. */
static void must_fit(const uint8_t *data, size_t size, int skipped) {
    File *mended = malloc(sizeof *mended);
    memcpy(mended->data, data, size);
    mended->size = size;
    mend_packed(mended);
    for (uint32_t i = 0; i < records_in(mended); i++) {
        const retnet_section s = record_of(mended, i);
        retnet_section was;
        memcpy(&was, data + record_at(i), sizeof was);
        must(in_file(mended, &s) && s.offset >= record_at(records_in(mended)), "a section within");
        if (s.kind <= RETNET_KIND_GENERATION && !(skipped && s.kind == RETNET_KIND_WEIGHTS))
            must(!memcmp(s.sha256, was.sha256, 32), "a section that was not changed");
        for (uint32_t j = 0; j < i; j++) {
            const retnet_section o = record_of(mended, j);
            must(o.kind != s.kind, "one section of a kind");
            must(!o.bytes || !s.bytes || o.offset + o.bytes <= s.offset ||
                     s.offset + s.bytes <= o.offset, "sections apart");
        }
    }
    free(mended);
}

static void read_parts(const retnet_model *model, const retnet_model_info *info) {
    retnet_sampling sampling;
    int32_t count;
    const int32_t *ends = retnet_model_ends(model, &count);
    for (int32_t i = 0; i < count; i++)
        must(ends[i] >= 0 && ends[i] < info->vocab_size, "an end of the vocabulary");
    must(info->drawable > 0 && info->drawable <= info->vocab_size && info->begin_token >= -1 &&
             info->begin_token < info->vocab_size, "tokens of the vocabulary");
    retnet_model_get_sampling(model, &sampling);
    must(sampling.temperature >= 0 && sampling.top_p > 0 && sampling.top_p <= 1 &&
             sampling.min_p >= 0 && sampling.min_p <= 1 && sampling.repetition_penalty > 0 &&
             sampling.top_k >= 0, "sampling");
    for (int32_t kind = -1; kind < 14; kind++) {
        uint64_t size = 1;
        const void *section = retnet_model_section(model, kind, &size);
        if (section) digest_of(section, size);
        else must(!size, "no bytes of no section");
    }
}

static void feed_some(Input *in, retnet_session *session, const retnet_model_info *info) {
    int32_t tokens[8];
    int64_t count = 1 + below(in, 8);
    for (int i = 0; i < 8; i++) tokens[i] = below(in, info->vocab_size);
    const int wrong = below(in, 8);
    if (wrong == 0) tokens[0] = (int32_t)odd_number(in, (uint64_t)info->vocab_size);
    if (wrong == 1) count = below(in, 2) ? 0 : RETNET_MOST_TOKENS + 1;
    const int64_t from = retnet_session_position(session);
    const retnet_status status = retnet_session_feed(session, tokens, count);
    must(status == RETNET_OK || status == RETNET_BAD_POSITION || (wrong < 2 && (
             status == RETNET_BAD_COUNT || status == RETNET_BAD_TOKEN)), "a feed's status");
    must(retnet_session_position(session) == (status ? from : from + count), "what was fed");
    must(status || retnet_session_logits(session), "logits");
}

/* The states that come out go in again, and into a state file, and the two sessions are the same. */
static void move_states(Input *in, retnet_session *session, const retnet_model_info *info) {
    retnet_session *second = NULL;
    retnet_error error;
    float *states = malloc(info->state_bytes);
    must(!retnet_session_get_states(session, states, info->state_bytes), "states");
    const int64_t position = retnet_session_position(session);
    must(!retnet_session_fork(session, &second, &error), "a fork");
    const int32_t token = below(in, info->vocab_size);
    if (position < INT64_MAX - 1) {
        must(!retnet_session_feed(session, &token, 1) && !retnet_session_feed(second, &token, 1),
             "a token");
        must(!memcmp(retnet_session_logits(session), retnet_session_logits(second),
                     sizeof(float) * (size_t)info->vocab_size), "the same logits");
    }
    must(retnet_session_set_states(second, states, info->state_bytes - 4, 0, NULL, 0) ==
             RETNET_BAD_BUFFER, "states of another size");
    must(!retnet_session_set_states(second, states, info->state_bytes, position, &token, 1),
         "states of the same size");
    if (!below(in, 16)) {
        must(!retnet_session_save(second, saved_path, &error), error.message);
        const retnet_status status = retnet_session_load(session, saved_path, &error);
        must_tell(status, &error, UINT64_MAX);
        must(status == RETNET_OK || (status == RETNET_BAD_FILE && strstr(error.message, "finite")),
             "a state that was saved is loaded");
        if (!status) must(retnet_session_position(session) == position, "its position");
    }
    retnet_session_free(second);
    free(states);
}

static void use(Input *in, retnet_model *model) {
    retnet_model_info info;
    retnet_model_get_info(model, &info);
    must(info.layers > 0 && info.vocab_size > 0 && info.state_bytes > 0, "an info");
    read_parts(model, &info);
    retnet_session *session = NULL;
    retnet_error error;
    const char *const kernels = below(in, 4) ? NULL : "plain";
    if (info.state_bytes <= MOST_STATES) {
        const retnet_status status =
            retnet_session_new(model, below(in, 16) ? 1 : 2, kernels, &session, &error);
        must(status == RETNET_OK, "a session");
    }
    const int early = below(in, 2);
    if (early) retnet_model_close(model);
    if (session) {
        for (int i = below(in, 3); i; i--) feed_some(in, session, &info);
        move_states(in, session, &info);
        if (below(in, 2)) retnet_session_reset(session);
        feed_some(in, session, &info);
        must(!retnet_session_free(session), "a session that ends");
    }
    if (!early) retnet_model_close(model);
}

/* By another way: the same model, or the same words. */
static void open_again(Input *in, const uint8_t *data, size_t size, uint32_t flags,
                       retnet_status before, const retnet_error *words) {
    const uint64_t offset = below(in, 3) ? 0 : below(in, 2) ? 64 : FAR + 64;
    retnet_model *model;
    retnet_error error;
    retnet_status status;
    write_file(packed_fd, offset, data, size);
    if (!offset && below(in, 2)) status = retnet_model_open(packed_path, flags, &model, &error);
    else {
        const uint64_t said = below(in, 2) ? size : 0;
        status = retnet_model_open_fd(packed_fd, offset, said, flags, &model, &error);
    }
    must_tell(status, &error, size);
    if (!size) must(status == RETNET_BAD_FILE, "an empty file");
    else must(status == before && !strcmp(error.message, words->message) &&
                  error.offset == words->offset, "the same by another way");
    if (model) use(in, model);
}

static void packed_case(const uint8_t *data, size_t size) {
    uint8_t bytes[2048];
    Input in = bytes_of_seed(digest_of(data, size), bytes, sizeof bytes);
    uint8_t *copy = exact_copy(data, size);
    const uint32_t flags = below(&in, 3) ? 0 : RETNET_SKIP_WEIGHT_HASH;
    retnet_model *model;
    retnet_error error;
    const retnet_status status = retnet_model_open_buffer(copy, size, flags, &model, &error);
    must_tell(status, &error, size);
    must(status == RETNET_OK || status == RETNET_BAD_FILE, "a file's status");
    must(!status == (model != NULL), "a model or a refusal");
    if (model) {
        told.opened++;
        if (!below(&in, 8)) must_fit(data, size, flags != 0);
        use(&in, model);
    } else told.refused++;
    if (!below(&in, 8)) open_again(&in, data, size, flags, status, &error);
    if (!below(&in, 64)) open_nothing(&in);
    if (!below(&in, 64)) open_badly(copy, size);
    if (!below(&in, 16)) run_out_of_memory(&in, copy, size, saved_path);
    free(copy);
}

/* A state is loaded, or the session is what it was. */
static void state_case(const uint8_t *data, size_t size) {
    uint8_t bytes[128];
    Input in = bytes_of_seed(digest_of(data, size), bytes, sizeof bytes);
    retnet_model_info info;
    retnet_model_get_info(state_model, &info);
    retnet_session *session, *same;
    retnet_error error;
    must(!retnet_session_new(state_model, 1, NULL, &session, &error), "a session");
    feed_some(&in, session, &info);
    must(!retnet_session_fork(session, &same, &error), "a fork");
    write_file(state_fd, 0, data, size);
    const retnet_status status = retnet_session_load(session, state_path, &error);
    must_tell(status, &error, size);
    must(status == RETNET_OK || status == RETNET_BAD_FILE || status == RETNET_OTHER_MODEL,
         "a state's status");
    float *states = malloc(2 * info.state_bytes), *others = states + info.state_bytes / 4;
    must(!retnet_session_get_states(session, states, info.state_bytes) &&
             !retnet_session_get_states(same, others, info.state_bytes), "states");
    if (status) {
        told.unloaded++;
        must(retnet_session_position(session) == retnet_session_position(same) &&
                 !memcmp(states, others, info.state_bytes) &&
                 !memcmp(retnet_session_seen(session), retnet_session_seen(same),
                         (size_t)info.vocab_size) &&
                 !retnet_session_logits(session) == !retnet_session_logits(same),
             "a session that is as it was");
    } else {
        told.loaded++;
        for (uint64_t i = 0; i < info.state_bytes / 4; i++)
            must(isfinite(states[i]), "a finite state");
        must(retnet_session_position(session) >= 0 && !retnet_session_logits(session),
             "a session that was loaded");
    }
    feed_some(&in, session, &info);
    free(states);
    retnet_session_free(session), retnet_session_free(same);
}

static int open_temporary(char *path, const char *folder, const char *name) {
    snprintf(path, 512, "%.400s/%s-%ld", folder, name, (long)getpid());
    const int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(fd >= 0, "a folder for files");
    return fd;
}

static void remove_files(void) {
    unlink(packed_path), unlink(state_path), unlink(saved_path);
}

static void begin(void) {
    const char *folder = getenv("RETNET_FUZZ_FOLDER"), *table = getenv("RETNET_FUZZ_TOKENIZER");
    retnet_model_info info;
    retnet_error error;
    folder = folder ? folder : "/tmp";
    packed_fd = open_temporary(packed_path, folder, "packed");
    state_fd = open_temporary(state_path, folder, "state");
    close(open_temporary(saved_path, folder, "saved"));
    atexit(remove_files);
    FILE *file = table ? fopen(table, "rb") : NULL;
    if (file) {
        tokenizer_size = fread(tokenizer, 1, sizeof tokenizer, file);
        fclose(file);
    }
    seeds = malloc(SEED_FILES * sizeof *seeds);
    state_file = malloc(sizeof *state_file);
    for (int i = 0; i < SEED_FILES; i++) make_seed(&seeds[i], i, tokenizer, tokenizer_size);
    uint8_t *model = exact_copy(seeds->data, seeds->size); /* as long as the process */
    must(!retnet_model_open_buffer(model, seeds->size, 0, &state_model, &error), error.message);
    retnet_model_get_info(state_model, &info);
    make_state(state_file, info.layers, info.state_bytes);
    for (int i = 0; i < SEED_FILES; i++) packed_case(seeds[i].data, seeds[i].size);
    state_case(state_file->data, state_file->size);
    must(told.opened == SEED_FILES && told.loaded == 1, "whole files that are read");
    memset(&told, 0, sizeof told);
}

/* Whole files, and a state; what lies behind a file's end stays as it was. */
static void any_seed(Input *in, File *file) {
    const int which = below(in, SEED_FILES * 3 / 2);
    const File *from = which < SEED_FILES ? &seeds[which] : state_file;
    memcpy(file->data, from->data, from->size);
    file->size = from->size;
}

static void damage(Input *in, File *file) {
    if (file->size >= 7 && !memcmp(file->data, RETNET_STATE_MAGIC, 7)) damage_state(in, file);
    else damage_packed(in, file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const int state = size >= 7 && !memcmp(data, RETNET_STATE_MAGIC, 7);
    if (!state_model) begin();
    begin_case();
    if (size > MOST_FILE) return 0;
    if (!state) packed_case(data, size);
    if (size < 8 || memcmp(data, RETNET_FILE_MAGIC, 8)) state_case(data, size);
    return 0;
}

#ifdef LIBFUZZER
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned int seed) {
    static File file;
    uint8_t bytes[1024];
    Input in = bytes_of_seed(seed, bytes, sizeof bytes);
    if (!state_model) begin();
    if (size < sizeof(retnet_state_header) || size > MOST_FILE || !below(&in, 64))
        any_seed(&in, &file);
    else {
        memcpy(file.data, data, file.size = size);
    }
    if (!below(&in, 8) && records_in(&file)) { /* a section by libFuzzer's own means */
        const retnet_section s = record_of(&file, (uint32_t)below(&in, (int)records_in(&file)));
        if (in_file(&file, &s) && s.bytes) LLVMFuzzerMutate(file.data + s.offset, s.bytes, s.bytes);
        mend_packed(&file);
    } else damage(&in, &file);
    const size_t kept = file.size < most ? file.size : most;
    memcpy(data, file.data, kept);
    return kept;
}
#else
static void one(Input *in) {
    static File file;
    any_seed(in, &file);
    damage(in, &file);
    LLVMFuzzerTestOneInput(file.data, file.size);
}

int main(int count, char **words) {
    begin();
    const long long cases = run_seeds(count, words, one);
    printf("%lld cases: %lld files opened, %lld were refused; %lld states loaded, %lld were refused\n",
           cases, told.opened, told.refused, told.loaded, told.unloaded);
    return 0;
}
#endif
