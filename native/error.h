/* Sentences for a caller's retnet_error. */
#ifndef RETNET_ERROR_H
#define RETNET_ERROR_H

#include "retnet.h"

#define NO_OFFSET UINT64_MAX

/* Fill in `error` (NULL: nothing) and return `status`. What a file brings into the sentence is
 * shown without its control characters. */
#if defined(__GNUC__)
__attribute__((format(printf, 4, 5)))
#endif
retnet_status fail(retnet_error *error, retnet_status status, uint64_t offset, const char *format,
                   ...);

/* No error so far. */
void no_error(retnet_error *error);

#endif
