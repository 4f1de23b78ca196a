/* feed_tokens FILE [PROMPT]: the logits [vocab_size] after each of the int32 tokens on standard
 * input, float32, to standard output; the first PROMPT tokens are fed as one prompt, whose last
 * logits are written. Built and run by test_same_bits.py. */
#include <stdio.h>
#include <stdlib.h>

#include "../../native/retnet.h"

int main(int count, char **words) {
    retnet_error error;
    retnet_model *model;
    retnet_session *session;
    if (count < 2 || retnet_model_open(words[1], 0, &model, &error) ||
        retnet_session_new(model, 2, NULL, &session, &error)) {
        fprintf(stderr, "%s\n", count < 2 ? "feed_tokens FILE [PROMPT]" : error.message);
        return 2;
    }
    retnet_model_info info;
    retnet_model_get_info(model, &info);
    retnet_model_close(model);
    static int32_t tokens[RETNET_MOST_TOKENS];
    const size_t prompt = count > 2 ? (size_t)atoi(words[2]) : 1;
    size_t read = fread(tokens, sizeof *tokens, prompt, stdin);
    for (; read; read = fread(tokens, sizeof *tokens, 1, stdin)) {
        if (retnet_session_feed(session, tokens, (int64_t)read)) return 1;
        fwrite(retnet_session_logits(session), sizeof(float), (size_t)info.vocab_size, stdout);
    }
    return retnet_session_free(session) || ferror(stdout);
}
