/* From logits to the next token: the decisions of runtime/text/sampling.py, to the bit. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "error.h"
#include "exponential.h"
#include "random.h"

typedef struct {
    float score;
    int32_t id;
} Candidate;

struct retnet_sampler {
    retnet_sampling settings;
    Random random;
    int32_t count;
    float *scores;         /* [count] logits after the penalty */
    Candidate *candidates; /* [count] */
    double *weights;       /* [count] of the candidates, the likeliest's being 1 */
};

static retnet_status check_option(const char *name, double value, double least, double most,
                                  int open, const char *allowed, retnet_error *error) {
    if (value >= least && value <= most && !(open && value == least)) /* and not NaN */
        return RETNET_OK;
    return fail(error, RETNET_BAD_ARGUMENT, NO_OFFSET, "%s is %g; allowed is %s", name, value,
                allowed);
}

static retnet_status check_sampling(const retnet_sampling *s, retnet_error *error) {
    const struct {
        const char *name;
        double value, least, most;
        int open; /* least itself is not allowed */
        const char *allowed;
    } options[] = {
        {"temperature", s->temperature, 0, DBL_MAX, 0, "0 (greedy) or more"},
        {"top_k", s->top_k, 0, INT32_MAX, 0, "0 (off) or more"},
        {"top_p", s->top_p, 0, 1, 1, "above 0 and at most 1"},
        {"min_p", s->min_p, 0, 1, 0, "0 to 1"},
        {"repetition_penalty", s->repetition_penalty, 0.01, 100, 0, "0.01 to 100"},
    };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (check_option(options[i].name, options[i].value, options[i].least, options[i].most,
                         options[i].open, options[i].allowed, error))
            return RETNET_BAD_ARGUMENT;
    return RETNET_OK;
}

retnet_status retnet_sampler_new(const retnet_sampling *sampling, int32_t count,
                                 retnet_sampler **to, retnet_error *error) {
    no_error(error);
    *to = NULL;
    if (count < 1)
        return fail(error, RETNET_BAD_ARGUMENT, NO_OFFSET, "count is %d; allowed is 1 or more",
                    count);
    if (check_sampling(sampling, error)) return RETNET_BAD_ARGUMENT;
    retnet_sampler *sampler = calloc(1, sizeof *sampler);
    if (sampler) {
        const size_t n = (size_t)count;
        sampler->settings = *sampling;
        sampler->count = count;
        sampler->scores = malloc(n * sizeof *sampler->scores);
        sampler->candidates = malloc(n * sizeof *sampler->candidates);
        sampler->weights = malloc(n * sizeof *sampler->weights);
        random_seed(&sampler->random, sampling->seed);
    }
    if (!sampler || !sampler->scores || !sampler->candidates || !sampler->weights) {
        retnet_sampler_free(sampler);
        return fail(error, RETNET_NO_MEMORY, NO_OFFSET, "no memory for a sampler of %d tokens",
                    count);
    }
    *to = sampler;
    return RETNET_OK;
}

void retnet_sampler_free(retnet_sampler *sampler) {
    if (!sampler) return;
    free(sampler->scores);
    free(sampler->candidates);
    free(sampler->weights);
    free(sampler);
}

static int before(Candidate a, Candidate b) {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
}

/* Let the candidate at `at` sink in a heap of `count`, whose first is before all others (`last` 0),
 * or after all others (1). */
static void sink(Candidate *heap, int32_t count, int32_t at, int last) {
    const Candidate moved = heap[at];
    for (int32_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && before(heap[child + 1], heap[child]) != last) child++;
        if (before(heap[child], moved) == last) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

static void make_heap(Candidate *heap, int32_t count, int last) {
    for (int32_t at = count / 2; at-- > 0;) sink(heap, count, at, last);
}

/* The `kept` first of all in order, at the candidates' beginning. */
static void find_largest(retnet_sampler *s, int32_t kept) {
    Candidate *heap = s->candidates;
    for (int32_t id = 0; id < kept; id++) heap[id] = (Candidate){s->scores[id], id};
    make_heap(heap, kept, 1);
    for (int32_t id = kept; id < s->count; id++) {
        const Candidate next = {s->scores[id], id};
        if (!before(next, heap[0])) continue;
        heap[0] = next;
        sink(heap, kept, 0, 1);
    }
    for (int32_t left = kept; left > 1;) { /* the last of those left to their end */
        const Candidate last = heap[0];
        heap[0] = heap[--left];
        sink(heap, left, 0, 1);
        heap[left] = last;
    }
}

static double weight(const retnet_sampler *s, float score, float top) {
    return exponential(((double)score - (double)top) / s->settings.temperature);
}

/* How many of the sorted weights it takes to reach `share` of the total. */
static int32_t nucleus(const double *weights, int32_t count, double wanted) {
    double sum = 0;
    for (int32_t i = 0; i < count; i++)
        if ((sum += weights[i]) >= wanted) return i + 1;
    return count;
}

/* Candidates, sorted where there is a top-k or top-p, and their weights; how many they are. */
static int32_t find_candidates(retnet_sampler *s, float top) {
    const retnet_sampling *o = &s->settings;
    double total = 0;
    if (o->top_k > 0 && o->top_k < s->count) {
        find_largest(s, o->top_k);
        for (int32_t i = 0; i < o->top_k; i++)
            total += s->weights[i] = weight(s, s->candidates[i].score, top);
        return o->top_p < 1 ? nucleus(s->weights, o->top_k, o->top_p * total) : o->top_k;
    }
    for (int32_t id = 0; id < s->count; id++) {
        s->candidates[id] = (Candidate){s->scores[id], id};
        total += s->weights[id] = weight(s, s->scores[id], top);
    }
    if (o->top_p >= 1) return s->count;
    /* from the likeliest on, as many as it takes: each is swapped out of a heap to the end */
    const double wanted = o->top_p * total;
    make_heap(s->candidates, s->count, 0);
    double sum = 0;
    int32_t left = s->count, kept = 0;
    while (left && (!kept || sum < wanted)) {
        const Candidate next = s->candidates[0];
        s->candidates[0] = s->candidates[--left];
        if (left) sink(s->candidates, left, 0, 0);
        s->candidates[left] = next;
        sum += s->weights[kept++] = weight(s, next.score, top);
    }
    for (int32_t i = 0; i < kept && i < s->count - 1 - i; i++) { /* the end becomes the beginning */
        const Candidate swapped = s->candidates[i];
        s->candidates[i] = s->candidates[s->count - 1 - i];
        s->candidates[s->count - 1 - i] = swapped;
    }
    return kept;
}

/* Logits after the penalty; the largest of them before it. */
static float penalized(retnet_sampler *s, const float *logits, const uint8_t *seen) {
    const float penalty = (float)s->settings.repetition_penalty;
    const int counts = seen && s->settings.repetition_penalty != 1;
    float best = -INFINITY;
    for (int32_t id = 0; id < s->count; id++) {
        float score = logits[id];
        if (!(score <= best)) best = score; /* a NaN too, which stays */
        if (best != best) return best;
        if (counts && seen[id]) score = score > 0 ? score / penalty : score * penalty;
        s->scores[id] = score;
    }
    return best;
}

retnet_status retnet_sample(retnet_sampler *s, const float *logits, const uint8_t *seen,
                            int32_t *token) {
    if (!(fabsf(penalized(s, logits, seen)) <= FLT_MAX)) return RETNET_BAD_BUFFER;
    int32_t best = 0;
    for (int32_t id = 1; id < s->count; id++)
        if (s->scores[id] > s->scores[best]) best = id;
    *token = best;
    if (s->settings.temperature == 0) return RETNET_OK;
    int32_t count = find_candidates(s, s->scores[best]), likely = 0;
    double total = 0;
    for (int32_t i = 0; i < count; i++) {
        if (s->weights[i] < s->settings.min_p) continue;
        s->candidates[likely] = s->candidates[i];
        s->weights[likely] = total += s->weights[i];
        likely++;
    }
    /* the total is at least 1, the likeliest's weight: a draw below 1, times it, stays below it */
    const double drawn = random_double(&s->random) * total;
    int32_t low = 0, high = likely - 1;
    while (low < high) { /* the first whose cumulative weight is above the draw */
        const int32_t middle = low + (high - low) / 2;
        if (s->weights[middle] > drawn) high = middle;
        else low = middle + 1;
    }
    *token = s->candidates[low].id;
    return RETNET_OK;
}
