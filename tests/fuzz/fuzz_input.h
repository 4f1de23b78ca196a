/* Bytes that decide what a case is, and numbers that nobody would write: for the fuzzers in C. */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../../native/retnet.h"

#if defined(__SANITIZE_ADDRESS__) || defined(LIBFUZZER)
#include <sanitizer/common_interface_defs.h>
#endif

enum { CASE_SECONDS = 10 /* of a case, after which it hangs */ };

static long long case_number; /* of those of a seed */

typedef struct {
    const uint8_t *at, *end;
} Input;

/* Big-endian; 0 where the bytes have come to their end. */
static inline uint32_t next(Input *in, int bytes) {
    uint32_t found = 0;
    for (int i = 0; i < bytes && in->at < in->end; i++) found = found << 8 | *in->at++;
    return found;
}

static inline int below(Input *in, int n) { return (int)(next(in, 2) % (uint32_t)n); }

static inline void tell_case(void) { fprintf(stderr, "\ncase %lld\n", case_number); }

static inline void must(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "\nnot so: %s\n", what);
    tell_case();
    abort();
}

/* As many bytes as a case may ask for, from its seed. */
static inline Input bytes_of_seed(uint64_t seed, uint8_t *bytes, size_t size) {
    for (size_t i = 0; i < size; i += 8) {
        uint64_t z = seed += 0x9e3779b97f4a7c15u; /* SplitMix64 */
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        memcpy(bytes + i, &z, size - i < 8 ? size - i : 8);
    }
    return (Input){bytes, bytes + size};
}

/* Numbers at the edges of what is stored in so many bytes. */
static inline uint64_t odd_number(Input *in, uint64_t was) {
    switch (below(in, 12)) {
        case 0: return 0;
        case 1: return 1;
        case 2: return was + 1;
        case 3: return was - 1;
        case 4: return was * 2;
        case 5: return was / 2;
        case 6: return UINT64_MAX - (uint64_t)below(in, 3);
        case 7: return (uint64_t)1 << below(in, 64);
        case 8: return ((uint64_t)1 << below(in, 64)) - 1;
        case 9: return was + (uint64_t)(below(in, 9) - 4) * 8;
        case 10: return was ^ (uint64_t)1 << below(in, 64);
        default: return (uint64_t)next(in, 4) << below(in, 33);
    }
}

static inline uint32_t odd_float(Input *in) {
    const uint32_t odd[] = {0, 0x80000000, 1, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f7fffff,
                            0x00800000, 0x3f800000, 0x3f800001};
    const int which = below(in, 14);
    return which < 10 ? odd[which] : next(in, 4);
}

static inline double odd_double(Input *in) {
    const double odd[] = {0, -0.0, 1, 1.5, -1, NAN, INFINITY, -INFINITY, 1e300, 1e-320,
                          0.999999999, 0.5, 0.03125};
    return odd[below(in, sizeof odd / sizeof *odd)];
}

/* Is it UTF-8 without control characters? */
static inline int is_plain_text(const char *text) {
    const unsigned char *c = (const unsigned char *)text;
    while (*c) {
        const int more = *c < 0x80 ? 0 : *c >= 0xf0 ? 3 : *c >= 0xe0 ? 2 : *c >= 0xc2 ? 1 : -1;
        if (more < 0 || *c < 32 || *c == 127 || (*c == 0xc2 && c[1] < 0xa0)) return 0;
        c++;
        for (int i = 0; i < more; i++, c++)
            if ((*c & 0xc0) != 0x80) return 0;
    }
    return 1;
}

/* What an error holds after a call on a file of `size` bytes: nothing, or a sentence. */
static inline void must_tell(retnet_status status, const retnet_error *error, uint64_t size) {
    must(error->code == (int32_t)status, "the error's code is the status");
    must(memchr(error->message, 0, sizeof error->message) != NULL, "a message that ends");
    if (status == RETNET_OK) must(!*error->message, "no words without an error");
    else must(strlen(error->message) > 8 && is_plain_text(error->message), "a sentence");
    must(error->offset == UINT64_MAX || error->offset <= size, "a place in the file");
}

static inline void on_alarm(int number) {
    (void)number;
    must(0, "a case that ends in time"); /* the process is lost, so that printing here is no harm */
}

/* From now on a case that takes longer is a crash, and a sanitizer's report names the case. */
static inline void begin_case(void) {
#if defined(__SANITIZE_ADDRESS__)
    static int told;
    if (!told++) __sanitizer_set_death_callback(tell_case);
#endif
    signal(SIGALRM, on_alarm);
    alarm(CASE_SECONDS);
}

/* `PROGRAM CASES SEED SECONDS`: cases of the seeds from SEED on, as many, or as fit into the time
 * (0: however long it takes). How many there were. */
static inline long long run_seeds(int count, char **words, void (*one)(Input *in)) {
    const long long cases = count > 1 ? atoll(words[1]) : 10000;
    const long long first = count > 2 ? atoll(words[2]) : 1;
    const time_t end = count > 3 && atoll(words[3]) ? time(NULL) + atoll(words[3]) : 0;
    long long done = 0;
    for (; done < cases && !(end && time(NULL) >= end); done++) {
        uint8_t data[1024];
        Input in = bytes_of_seed((uint64_t)(first + done), data, sizeof data);
        case_number = first + done;
        one(&in);
    }
    return done;
}

#endif
