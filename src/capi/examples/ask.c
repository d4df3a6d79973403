/* Asks a model one question and streams the answer: a whole program over libmmx.
 *
 *   cc -std=c11 ask.c -I../include -L. -lmmx -o ask          the shared library
 *   cc -std=c11 ask.c -I../include libmmx.a -lstdc++ -lm -lpthread -ldl -o ask
 *   ./ask model.gguf "What is 7 + 5?" [TOKENS]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mmx.h"

/* Prints the sentence of the last failure; 1 for main to return. */
static int failed(const char *doing) {
    fprintf(stderr, "error: %s: %s\n", doing, mmx_last_error());
    return 1;
}

/* Text as it comes; a stdout that is gone ends the generation. */
static bool print(const char *text, size_t length, void *user) {
    size_t *bytes = user;
    *bytes += length;
    return fwrite(text, 1, length, stdout) == length && fflush(stdout) == 0;
}

/* The text as a JSON string, to be freed. */
static char *quoted(const char *text) {
    char *json = malloc(6 * strlen(text) + 3), *to = json;
    if (!json) return NULL;
    *to++ = '"';
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\' || c < 0x20) {
            to += sprintf(to, "\\u%04x", c);
        } else {
            *to++ = (char)c;
        }
    }
    *to++ = '"';
    *to = 0;
    return json;
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: ask MODEL.gguf QUESTION [TOKENS]\n");
        return 2;
    }
    int code = 1;
    mmx_model *model = NULL;
    mmx_session *session = NULL;
    char *question = NULL, *messages = NULL;
    uint32_t *ids = NULL;
    float *logits = NULL;

    if (mmx_model_open(argv[1], NULL, &model) != MMX_STATUS_OK) return failed("open");
    if (mmx_session_new(model, NULL, &session) != MMX_STATUS_OK) {
        failed("session");
        goto end;
    }

    /* the chat as ids: first how many, then they themselves */
    question = quoted(argv[2]);
    messages = question ? malloc(strlen(question) + 64) : NULL;
    if (!messages) goto end;
    sprintf(messages, "[{\"role\": \"user\", \"content\": %s}]", question);
    size_t count = 0;
    if (mmx_chat_tokenize(model, messages, NULL, NULL, 0, &count) != MMX_STATUS_TOO_SMALL) {
        failed("chat");
        goto end;
    }
    ids = malloc(count * sizeof *ids);
    if (!ids || mmx_chat_tokenize(model, messages, NULL, ids, count, &count) != MMX_STATUS_OK) {
        failed("chat");
        goto end;
    }

    /* what is likeliest to come first */
    size_t vocabulary = mmx_model_vocab_size(model);
    logits = malloc(vocabulary * sizeof *logits);
    if (!logits || mmx_eval(session, ids, count, logits, vocabulary) != MMX_STATUS_OK) {
        failed("eval");
        goto end;
    }
    uint32_t best = 0;
    for (uint32_t id = 1; id < vocabulary; id++) {
        if (logits[id] > logits[best]) best = id;
    }
    char piece[256];
    size_t length = 0;
    if (mmx_detokenize(model, &best, 1, true, piece, sizeof piece, &length) == MMX_STATUS_OK) {
        fprintf(stderr, "likeliest first token: %u (%s)\n", best, piece);
    }

    /* the answer; what eval read is not read again */
    mmx_generate_options options;
    mmx_generated told;
    size_t kept = 0, bytes = 0;
    mmx_generate_options_init(&options, NULL); /* greedy; with the model: as its file says */
    if (argc == 4) options.max_tokens = strtoul(argv[3], NULL, 10);
    if (mmx_session_reuse(session, ids, count, &kept) != MMX_STATUS_OK ||
        mmx_generate(session, ids + kept, count - kept, &options, print, &bytes, &told) !=
            MMX_STATUS_OK) {
        failed("generate");
        goto end;
    }
    fprintf(stderr, "\n%zu tokens read, %zu of them again, %zu written, %zu bytes\n", count,
            told.prompt_tokens, told.tokens, bytes);
    code = 0;

end:
    free(logits);
    free(ids);
    free(messages);
    free(question);
    mmx_session_free(session);
    mmx_model_free(model);
    return code;
}
