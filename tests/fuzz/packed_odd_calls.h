/* Calls on a packed file that go wrong whatever is in it: odd names, odd flags, no memory. */
#ifndef PACKED_ODD_CALLS_H
#define PACKED_ODD_CALLS_H

#include "fuzz_input.h"

/* Names of files that are not there, and what no file is called, as they come from anywhere. */
static inline void open_nothing(Input *in) {
    char path[400] = "/nothing/";
    const size_t length = 9 + (size_t)below(in, 380);
    for (size_t i = 9; i < length; i++)
        path[i] = below(in, 3) ? (char)(1 + below(in, 255)) : "\xc3\xa9\xf0\x9f\x99\x82"[i % 6];
    path[length] = 0;
    retnet_model *model;
    retnet_error error;
    const retnet_status status = retnet_model_open(path, 0, &model, &error);
    must_tell(status, &error, 0);
    must(status == RETNET_NO_FILE && !model, "no file of this name");
}

/* A buffer that lies askew, and flags that nobody knows. */
static inline void open_badly(const uint8_t *copy, size_t size) {
    retnet_model *model;
    retnet_error error;
    retnet_status status = retnet_model_open_buffer(copy, size, 6, &model, &error);
    must_tell(status, &error, size);
    must(status == RETNET_BAD_ARGUMENT && !model, "flags that are refused");
    if (size < 8) return;
    status = retnet_model_open_buffer(copy + 8, size - 8, 0, &model, &error);
    must_tell(status, &error, size);
    must(status == RETNET_BAD_BUFFER && !model, "a buffer that is refused");
}

/* The linker's option --wrap gives the library these in place of the C library's. */
static int allocations_left = -1; /* negative: any number */

static inline int denied(void) {
    if (allocations_left > 0) allocations_left--;
    return !allocations_left;
}

#define WRAPPED(name, parameters, arguments)                    \
    void *__real_##name parameters;                             \
    void *__wrap_##name parameters;                             \
    void *__wrap_##name parameters { return denied() ? NULL : __real_##name arguments; }
WRAPPED(malloc, (size_t size), (size))
WRAPPED(calloc, (size_t count, size_t size), (count, size))
WRAPPED(aligned_alloc, (size_t align, size_t size), (align, size))

/* Memory that runs out at any moment: what fails has changed nothing, and nothing is left over. */
static inline void run_out_of_memory(Input *in, const uint8_t *copy, size_t size,
                                     const char *path) {
    static const int32_t tokens[] = {0, 0, 0};
    retnet_model *model;
    retnet_session *session = NULL, *forked = NULL;
    retnet_error error;
    allocations_left = 1 + below(in, 24);
    retnet_status status = retnet_model_open_buffer(copy, size, 0, &model, &error);
    must_tell(status, &error, size);
    must(status == RETNET_OK || status == RETNET_BAD_FILE || status == RETNET_NO_MEMORY, "a status");
    if (model) status = retnet_session_new(model, 1 + below(in, 4) / 3, NULL, &session, &error);
    must(!model || status == RETNET_OK || status == RETNET_NO_MEMORY, "a session's status");
    if (session) {
        const int64_t count = 1 + below(in, 3);
        status = retnet_session_feed(session, tokens, count);
        must(status == RETNET_OK || status == RETNET_NO_MEMORY, "a feed's status");
        must(retnet_session_position(session) == (status ? 0 : count), "a position");
        status = retnet_session_fork(session, &forked, &error);
        must((status == RETNET_OK) == (forked != NULL), "a fork or none");
        status = retnet_session_save(session, path, &error);
        must_tell(status, &error, UINT64_MAX);
        if (status == RETNET_OK) status = retnet_session_load(session, path, &error);
        must(status == RETNET_OK || status == RETNET_NO_MEMORY || status == RETNET_BAD_FILE,
             "a state's status");
    }
    allocations_left = -1;
    retnet_session_free(session), retnet_session_free(forked);
    retnet_model_close(model);
}

#endif
