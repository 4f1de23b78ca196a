#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void no_error(retnet_error *error) {
    if (error) *error = (retnet_error){.offset = NO_OFFSET};
}

/* A sentence that was cut off must not end within a character. */
static size_t whole_characters(const char *text, size_t size) {
    size_t start = size;
    while (start && ((unsigned char)text[start - 1] & 0xc0) == 0x80) start--;
    if (!start) return size;
    const unsigned char lead = (unsigned char)text[start - 1];
    const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    return start - 1 + length <= size ? size : start - 1;
}

retnet_status fail(retnet_error *error, retnet_status status, uint64_t offset, const char *format,
                   ...) {
    if (!error) return status;
    *error = (retnet_error){.code = (int32_t)status, .offset = offset};
    va_list values;
    va_start(values, format);
    vsnprintf(error->message, sizeof error->message, format, values);
    va_end(values);
    for (char *c = error->message; *c; c++)
        if ((unsigned char)*c < 32 || *c == 127) *c = '?';
    error->message[whole_characters(error->message, strlen(error->message))] = 0;
    return status;
}

const char *status_text(retnet_status status) {
    switch (status) {
    case RETNET_OK: return "no error";
    case RETNET_NO_MEMORY: return "memory or threads ran out";
    case RETNET_BAD_FILE: return "the file is not what it should be";
    case RETNET_BAD_THREADS: return "the number of threads is not 1 to 256";
    case RETNET_NO_KERNELS: return "this CPU lacks these kernels";
    case RETNET_BUSY: return "this session is in use by another thread, and runs one call at a time";
    case RETNET_BAD_COUNT: return "a call takes 1 to 4096 tokens";
    case RETNET_BAD_TOKEN: return "a token's id is out of range";
    case RETNET_BAD_POSITION: return "the position is negative or too large to count on from";
    case RETNET_BAD_BUFFER: return "a buffer is missing, of another size, or holds what is no number";
    case RETNET_BAD_ARGUMENT: return "an argument is out of its range";
    case RETNET_NO_FILE: return "the file cannot be opened";
    case RETNET_OTHER_MODEL: return "this is a state of another model";
    case RETNET_NO_TOKENIZER: return "the model has no tokenizer, and runs on token ids alone";
    case RETNET_BAD_TEXT: return "the text is not UTF-8, or too long";
    case RETNET_STOPPED: return "stopped";
    case RETNET_NO_LOGITS: return "nothing was fed yet";
    }
    return "an unknown status";
}
