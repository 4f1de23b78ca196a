#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void no_error(retnet_error *error) {
    if (error) *error = (retnet_error){.offset = NO_OFFSET};
}

/* Bytes of the UTF-8 character that stands here, 0: none does, or a control character. */
static size_t character_bytes(const unsigned char *c) {
    if (*c < 0x80) return *c >= 32 && *c != 127;
    const size_t length = *c >= 0xf0 ? 4 : *c >= 0xe0 ? 3 : 2;
    uint32_t value = *c & (0xffu >> (length + 1));
    for (size_t i = 1; i < length; i++) { /* ends at the text's 0 */
        if ((c[i] & 0xc0) != 0x80) return 0;
        value = value << 6 | (c[i] & 0x3f);
    }
    const uint32_t least[] = {0, 0, 0xa0, 0x800, 0x10000}; /* 0x80 to 0x9f are controls */
    if (*c < 0xc0 || value < least[length] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff))
        return 0;
    return length;
}

/* Names of files hold any bytes, and a long one is cut off anywhere. */
static void make_plain(char *text) {
    for (unsigned char *c = (unsigned char *)text; *c;) {
        const size_t length = character_bytes(c);
        if (!length) *c = '?';
        c += length ? length : 1;
    }
}

retnet_status fail(retnet_error *error, retnet_status status, uint64_t offset, const char *format,
                   ...) {
    if (!error) return status;
    *error = (retnet_error){.code = (int32_t)status, .offset = offset};
    va_list values;
    va_start(values, format);
    vsnprintf(error->message, sizeof error->message, format, values);
    va_end(values);
    make_plain(error->message);
    return status;
}
