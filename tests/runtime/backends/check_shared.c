/* Several threads that open one packed file, run sessions of their own and one that all share, save
 * and load state files under one name. Built and run by
 * test_native_kernels.py, under the thread sanitizer too; writes what is wrong, and exits with 1. */
#define _GNU_SOURCE
#include <pthread.h>
#include <unistd.h>

#include "../../fuzz/packed_seed.h"
#include "engine_checks.h"

enum { THREADS = 4, ROUNDS = 25, SHARED_CALLS = 40, VOCABULARY = 16 };

static const int32_t IDS[] = {3, 9, 1, 15, 0, 2};

static char file_path[64], state_path[64];
static retnet_model *common;             /* that all sessions of `shared` are on */
static retnet_session *shared[THREADS];  /* anybody's */
static float alone[VOCABULARY];          /* the logits after IDS */

static void check(int holds, const char *what) {
    static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
    if (holds) return;
    pthread_mutex_lock(&one);
    expect(0, what, "shared");
    pthread_mutex_unlock(&one);
}

static int done_or_busy(retnet_status status) {
    return status == RETNET_OK || status == RETNET_BUSY;
}

/* A model and sessions of its own, with what it gets alone. */
static void run_own(int round) {
    retnet_model *model;
    retnet_session *session, *forked;
    retnet_error error;
    uint64_t size;
    check(!retnet_model_open(file_path, round % 2, &model, &error), error.message);
    if (!model) return;
    check(retnet_model_section(model, RETNET_SECTION_LICENCE, &size) && size == 22, "a section");
    check(!retnet_session_new(model, 1 + round % 2, NULL, &session, &error), error.message);
    retnet_model_close(model);
    check(!retnet_session_feed(session, IDS, 6), "a feed");
    check(!memcmp(retnet_session_logits(session), alone, sizeof alone), "other logits");
    check(!retnet_session_save(session, state_path, &error), error.message);
    check(!retnet_session_reset(session), "a reset");
    check(!retnet_session_load(session, state_path, &error), error.message);
    check(retnet_session_position(session) == 6, "whose state it is");
    check(!retnet_session_fork(session, &forked, &error), error.message);
    check(!retnet_session_feed(session, IDS, 1) && !retnet_session_feed(forked, IDS, 1), "a feed");
    check(!memcmp(retnet_session_logits(session), retnet_session_logits(forked), sizeof alone),
          "two that were one");
    check(!retnet_session_free(session) && !retnet_session_free(forked), "an end");
}

/* Calls on sessions that others are in. */
static void run_shared(int call) {
    retnet_session *session = shared[call % THREADS], *forked = NULL;
    double seconds[RETNET_STAGES];
    retnet_model_info info;
    retnet_model_get_info(common, &info);
    float *states = calloc(info.state_bytes, 1);
    check(done_or_busy(retnet_session_feed(session, IDS, 1 + call % 6)), "a shared feed");
    check(done_or_busy(retnet_session_seconds(session, seconds)), "shared seconds");
    check(done_or_busy(retnet_session_get_states(session, states, info.state_bytes)), "states");
    check(done_or_busy(retnet_session_set_states(session, states, info.state_bytes, call, IDS, 2)),
          "shared states");
    check(done_or_busy(retnet_session_save(session, state_path, NULL)), "a shared save");
    check(done_or_busy(retnet_session_load(session, state_path, NULL)), "a shared load");
    check(done_or_busy(retnet_session_fork(session, &forked, NULL)), "a shared fork");
    check(!retnet_session_free(forked), "a fork's end");
    free(states);
}

static void *run_all(void *arg) {
    const int first = *(const int *)arg;
    for (int i = 0; i < ROUNDS; i++) run_own(first + i);
    return NULL;
}

static void *run_those_of_all(void *arg) {
    const int first = *(const int *)arg;
    for (int i = 0; i < SHARED_CALLS; i++) run_shared(first + i);
    return NULL;
}

static void in_threads(void *(*what)(void *)) {
    pthread_t who[THREADS];
    int numbers[THREADS];
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        check(!pthread_create(&who[i], NULL, what, &numbers[i]), "a thread");
    }
    for (int i = 0; i < THREADS; i++) pthread_join(who[i], NULL);
}

int main(void) {
    char folder[] = "/tmp/check-shared-XXXXXX";
    if (!mkdtemp(folder)) return 1;
    snprintf(file_path, sizeof file_path, "%s/a.retnet", folder);
    snprintf(state_path, sizeof state_path, "%s/a.state", folder);
    File *seed = malloc(sizeof *seed);
    make_seed(seed, 1, NULL, 0);
    FILE *file = fopen(file_path, "wb");
    check(file && fwrite(seed->data, 1, seed->size, file) == seed->size && !fclose(file), "a file");
    free(seed);
    retnet_error error;
    check(!retnet_model_open(file_path, 0, &common, &error), error.message);
    for (int i = 0; i < THREADS && common; i++)
        check(!retnet_session_new(common, 2, NULL, &shared[i], &error), error.message);
    if (!failures) {
        check(!retnet_session_feed(shared[0], IDS, 6), "a feed");
        memcpy(alone, retnet_session_logits(shared[0]), sizeof alone);
        in_threads(run_all);
        in_threads(run_those_of_all);
    }
    for (int i = 0; i < THREADS; i++) check(!retnet_session_free(shared[i]), "an end");
    retnet_model_close(common);
    unlink(file_path), unlink(state_path);
    check(!rmdir(folder), "a folder without remains");
    return failures > 0;
}
