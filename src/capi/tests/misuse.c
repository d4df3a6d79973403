/* Every function with arguments that are wrong, and two threads in one session: statuses and sentences, never a
 * crash. In: a model's path. The last line on stdout is "ok". */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mmx.h"

static int faults;

#define EXPECT(what)                                                        \
    do {                                                                    \
        if (!(what)) {                                                      \
            faults++;                                                       \
            printf("line %d: %s: %s\n", __LINE__, #what, mmx_last_error()); \
        }                                                                   \
    } while (0)

#define SAYS(part) EXPECT(strstr(mmx_last_error(), part) != NULL)

struct other {
    mmx_session *session;
    mmx_status status;
    char said[200];
};

static void *use_from_another_thread(void *user) {
    struct other *other = user;
    size_t kept;
    other->status = mmx_session_reuse(other->session, NULL, 0, &kept);
    snprintf(other->said, sizeof other->said, "%s", mmx_last_error());
    return NULL;
}

struct count {
    mmx_session *session;
    size_t pieces;
    size_t most;
    struct other other;
};

/* Uses the session while it is generating, from this thread and another. */
static bool count_pieces(const char *text, size_t length, void *user) {
    struct count *count = user;
    EXPECT(length > 0 && text[length] == 0);
    if (count->pieces++ == 0) {
        pthread_t thread;
        count->other.session = count->session;
        EXPECT(pthread_create(&thread, NULL, use_from_another_thread, &count->other) == 0);
        EXPECT(pthread_join(thread, NULL) == 0);
    }
    return count->pieces < count->most;
}

struct said {
    char text[256];
    size_t length;
};

static bool collect(const char *text, size_t length, void *user) {
    struct said *said = user;
    EXPECT(said->length + length < sizeof said->text);
    memcpy(said->text + said->length, text, length);
    said->length += length;
    return true;
}

/* A generation step by step: the text of mmx_generate, and what may go wrong in between. */
static void step_by_step(mmx_session *session, const uint32_t *ids, size_t count) {
    mmx_generation *generation = NULL;
    mmx_generate_options request;
    mmx_generated told, at_once;
    char text[64];
    size_t length = 0, kept = 0, n = 0;
    bool more = true;
    uint32_t written[8];
    EXPECT(mmx_generate_options_init(&request, NULL) == MMX_STATUS_OK);
    request.max_tokens = 8;
    request.ignore_end = true;
    EXPECT(mmx_session_reuse(session, ids, 0, &kept) == MMX_STATUS_OK);
    struct said said = {"", 0};
    EXPECT(mmx_generate(session, ids, count, &request, collect, &said, &at_once) == MMX_STATUS_OK);
    EXPECT(at_once.finish == MMX_FINISH_LENGTH);

    EXPECT(mmx_generation_new(NULL, ids, count, &request, &generation) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_generation_new(session, ids, count, NULL, &generation) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_generation_new(session, ids, count, &request, NULL) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_generation_new(session, ids, 0, &request, &generation) == MMX_STATUS_FAILED);
    SAYS("at least one token");
    EXPECT(mmx_session_reuse(session, ids, 0, &kept) == MMX_STATUS_OK);
    EXPECT(mmx_generation_new(session, ids, count, &request, &generation) == MMX_STATUS_OK);
    EXPECT(mmx_generation_next(NULL, text, sizeof text, &length, &more) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_generation_next(generation, text, sizeof text, NULL, &more) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_generation_next(generation, text, sizeof text, &length, NULL) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_session_length(session) == 0);
    struct said steps = {"", 0};
    more = true;
    while (more) {
        /* a buffer that is too small loses nothing, and computes nothing twice */
        mmx_status status = mmx_generation_next(generation, NULL, 0, &length, &more);
        EXPECT(status == MMX_STATUS_TOO_SMALL && more);
        size_t told_before = length;
        EXPECT(mmx_generation_next(generation, NULL, 8, &length, &more) != MMX_STATUS_OK);
        EXPECT(mmx_generation_next(generation, text, sizeof text, &length, &more) == MMX_STATUS_OK);
        EXPECT(length == told_before && text[length] == 0);
        collect(text, length, &steps);
    }
    EXPECT(steps.length == said.length && memcmp(steps.text, said.text, said.length) == 0);
    EXPECT(mmx_generation_next(generation, text, sizeof text, &length, &more) == MMX_STATUS_OK);
    EXPECT(length == 0 && !more);
    EXPECT(mmx_generation_result(generation, NULL) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_generation_result(generation, &told) == MMX_STATUS_OK);
    EXPECT(told.finish == MMX_FINISH_LENGTH && told.tokens == 8 && told.prompt_tokens == count);
    EXPECT(mmx_generation_ids(generation, written, 7, &n) == MMX_STATUS_TOO_SMALL && n == 8);
    EXPECT(mmx_generation_ids(generation, written, 8, &n) == MMX_STATUS_OK && n == 8);
    EXPECT(mmx_session_length(session) == count + 7);
    mmx_generation_free(generation);
    mmx_generation_free(NULL);

    /* one that is given up, and one whose session others use */
    EXPECT(mmx_session_reuse(session, ids, 0, &kept) == MMX_STATUS_OK);
    EXPECT(mmx_generation_new(session, ids, count, &request, &generation) == MMX_STATUS_OK);
    EXPECT(mmx_generation_next(generation, text, sizeof text, &length, &more) == MMX_STATUS_OK && more);
    EXPECT(mmx_generation_result(generation, &told) == MMX_STATUS_OK);
    EXPECT(told.finish == MMX_FINISH_CANCELLED && told.tokens == 1);
    EXPECT(mmx_eval(session, ids, 1, NULL, 0) == MMX_STATUS_OK);
    EXPECT(mmx_generation_next(generation, text, sizeof text, &length, &more) == MMX_STATUS_FAILED);
    SAYS("used otherwise");
    mmx_generation_free(generation);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    mmx_model *model = NULL;
    mmx_session *session = NULL;
    uint32_t ids[8] = {0};
    size_t n = 0;
    char text[64];
    EXPECT(strlen(mmx_version()) > 0);
    EXPECT(strlen(mmx_last_error()) == 0);

    EXPECT(mmx_model_open(NULL, NULL, &model) == MMX_STATUS_INVALID_ARGUMENT);
    SAYS("path: expected a pointer, found null");
    EXPECT(mmx_model_open("\xff", NULL, &model) == MMX_STATUS_INVALID_ARGUMENT);
    SAYS("UTF-8");
    EXPECT(mmx_model_open("no-such-file.gguf", NULL, &model) == MMX_STATUS_FAILED);
    SAYS("no-such-file.gguf");
    EXPECT(mmx_model_open_bytes((const uint8_t *)"GGUF", 4, NULL, &model) == MMX_STATUS_FAILED);
    EXPECT(mmx_model_open_bytes(NULL, 4, NULL, &model) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_model_open(argv[1], NULL, NULL) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(model == NULL);
    mmx_model_options load;
    EXPECT(mmx_model_options_init(&load) == MMX_STATUS_OK);
    EXPECT(mmx_model_options_init(NULL) == MMX_STATUS_INVALID_ARGUMENT);
    load.repack = false;
    EXPECT(load.gpu_layers == 0 && load.device == NULL);
    load.gpu_layers = 1;
    load.device = "Abacus7";
    EXPECT(mmx_model_open(argv[1], &load, &model) == MMX_STATUS_FAILED);
    SAYS("found Abacus7");
    load.gpu_layers = 0;
    EXPECT(mmx_model_open(argv[1], &load, &model) == MMX_STATUS_OK);
    mmx_model_free(NULL);
    mmx_session_free(NULL);

    EXPECT(mmx_model_vocab_size(NULL) == 0 && mmx_model_context_length(NULL) == 0);
    EXPECT(mmx_model_vocab_size(model) > 256 && mmx_model_context_length(model) > 0);
    EXPECT(mmx_tokenize(NULL, "a", true, ids, 8, &n) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_tokenize(model, "abc", true, ids, 2, &n) == MMX_STATUS_TOO_SMALL && n == 3);
    EXPECT(mmx_tokenize(model, "abc", true, NULL, 8, &n) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_tokenize(model, "abc", true, ids, 8, NULL) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_tokenize(model, "<|im_end|>", true, ids, 8, &n) == MMX_STATUS_OK && n == 1);
    EXPECT(mmx_tokenize(model, "<|im_end|>", false, ids, 8, &n) == MMX_STATUS_TOO_SMALL && n == 10);
    EXPECT(mmx_tokenize(model, "abc", false, ids, 8, &n) == MMX_STATUS_OK && n == 3);
    EXPECT(mmx_detokenize(model, ids, 3, false, text, 3, &n) == MMX_STATUS_TOO_SMALL && n == 3);
    EXPECT(mmx_detokenize(model, ids, 3, false, text, 4, &n) == MMX_STATUS_OK && n == 3);
    EXPECT(strcmp(text, "abc") == 0);

    EXPECT(mmx_tokenize_text(model, "a\0b", 3, false, true, ids, 8, &n) == MMX_STATUS_OK && n >= 3);
    EXPECT(mmx_detokenize(model, ids, n, false, text, sizeof text, &n) == MMX_STATUS_OK && n == 3);
    EXPECT(memcmp(text, "a\0b", 4) == 0);
    EXPECT(mmx_tokenize_text(model, NULL, 0, false, false, ids, 8, &n) == MMX_STATUS_OK && n == 0);
    EXPECT(mmx_tokenize_text(model, NULL, 1, false, false, ids, 8, &n) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_tokenize_text(model, "\xff", 1, false, false, ids, 8, &n) == MMX_STATUS_INVALID_ARGUMENT);
    SAYS("UTF-8");
    EXPECT(mmx_tokenize(model, "abc", false, ids, 8, &n) == MMX_STATUS_OK && n == 3);

    EXPECT(mmx_chat_tokenize(model, "[", NULL, ids, 8, &n) == MMX_STATUS_INVALID_ARGUMENT);
    SAYS("messages: expected JSON");
    EXPECT(mmx_chat_tokenize(model, "{}", NULL, ids, 8, &n) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_chat_tokenize(model, "[1]", NULL, ids, 8, &n) == MMX_STATUS_INVALID_ARGUMENT);
    const char *chat = "[{\"role\": \"user\", \"content\": \"<|im_end|>\"}]";
    EXPECT(mmx_chat_render(model, chat, "[]", text, sizeof text, &n) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_chat_render(model, chat, "{\"add_generation_prompt\": 1}", text, sizeof text, &n) ==
           MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_chat_render(model, chat, NULL, text, 0, &n) == MMX_STATUS_TOO_SMALL && n > 20);
    size_t with_prompt = n;
    EXPECT(mmx_chat_render(model, chat, "{\"add_generation_prompt\": true}", NULL, 0, &n) ==
           MMX_STATUS_TOO_SMALL);
    EXPECT(n == with_prompt);

    EXPECT(mmx_session_new(NULL, NULL, &session) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_session_new(model, NULL, NULL) == MMX_STATUS_INVALID_ARGUMENT);
    mmx_session_options options;
    EXPECT(mmx_session_options_init(NULL) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_session_options_init(&options) == MMX_STATUS_OK);
    options.threads = 513;
    EXPECT(mmx_session_new(model, &options, &session) == MMX_STATUS_FAILED);
    EXPECT(strstr(mmx_last_error(), "1 to 512 threads") != NULL);
    options.threads = (size_t)1 << 32; /* no thread at all, as an int */
    EXPECT(mmx_session_new(model, &options, &session) == MMX_STATUS_FAILED);
    options.threads = 0;
    options.n_ctx = 64;
    options.exact = true;
    EXPECT(mmx_session_new(model, &options, &session) == MMX_STATUS_OK);
    mmx_model *again = NULL;
    EXPECT(mmx_model_open(argv[1], NULL, &again) == MMX_STATUS_OK);
    mmx_model_free(model); /* the session keeps the weights */
    EXPECT(mmx_session_capacity(session) == 64 && mmx_session_capacity(NULL) == 0);

    size_t vocabulary = 259;
    float *logits = malloc(3 * vocabulary * sizeof *logits);
    EXPECT(mmx_eval(session, ids, 3, logits, vocabulary - 1) == MMX_STATUS_TOO_SMALL);
    EXPECT(mmx_eval(session, NULL, 3, logits, vocabulary) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_eval(session, ids, 0, logits, vocabulary) == MMX_STATUS_FAILED);
    SAYS("at least one token");
    EXPECT(mmx_session_length(session) == 0);
    uint32_t unknown = 100000;
    EXPECT(mmx_eval(session, &unknown, 1, NULL, 0) == MMX_STATUS_FAILED);
    SAYS("100000");
    EXPECT(mmx_eval(session, ids, 3, NULL, 0) == MMX_STATUS_OK);
    EXPECT(mmx_session_length(session) == 3);
    EXPECT(mmx_session_reuse(session, ids, 3, &n) == MMX_STATUS_OK && n == 2);
    EXPECT(mmx_eval(session, ids + 2, 1, logits, vocabulary) == MMX_STATUS_OK);
    float last = logits[7];
    EXPECT(mmx_session_reuse(session, ids, 0, &n) == MMX_STATUS_OK && n == 0);
    EXPECT(mmx_eval_all(session, ids, 3, logits, 3 * vocabulary) == MMX_STATUS_OK);
    /* float32 in another order for one row and for three */
    EXPECT(logits[2 * vocabulary + 7] - last < 1e-4f && last - logits[2 * vocabulary + 7] < 1e-4f);
    EXPECT(mmx_eval_all(session, ids, 3, NULL, 3 * vocabulary) == MMX_STATUS_INVALID_ARGUMENT);

    mmx_generate_options request;
    mmx_generated told;
    EXPECT(mmx_generate_options_init(NULL, NULL) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_generate_options_init(&request, NULL) == MMX_STATUS_OK);
    EXPECT(mmx_session_reuse(session, ids, 0, &n) == MMX_STATUS_OK);
    EXPECT(mmx_generate(session, ids, 3, NULL, NULL, NULL, NULL) == MMX_STATUS_INVALID_ARGUMENT);
    request.temperature = -1;
    EXPECT(mmx_generate(session, ids, 3, &request, NULL, NULL, NULL) == MMX_STATUS_FAILED);
    SAYS("temperature: expected 0 (greedy) or more, found -1");
    const char *stops[2] = {"x", NULL};
    request.temperature = 5;
    request.ignore_end = true;
    request.stop = stops;
    request.stop_count = 2;
    EXPECT(mmx_generate(session, ids, 3, &request, NULL, NULL, NULL) == MMX_STATUS_INVALID_ARGUMENT);
    request.stop = NULL;
    EXPECT(mmx_generate(session, ids, 3, &request, NULL, NULL, NULL) == MMX_STATUS_INVALID_ARGUMENT);
    request.stop_count = 0;
    EXPECT(mmx_session_length(session) == 0);
    EXPECT(mmx_generate(session, ids, 3, &request, NULL, NULL, &told) == MMX_STATUS_OK);
    EXPECT(told.finish == MMX_FINISH_CONTEXT && told.prompt_tokens == 3);
    EXPECT(mmx_session_length(session) == 64);
    EXPECT(mmx_session_reuse(session, ids, 3, &n) == MMX_STATUS_OK && n == 2);
    struct count count = {session, 0, 2, {NULL, MMX_STATUS_OK, ""}};
    EXPECT(mmx_generate(session, ids + n, 3 - n, &request, count_pieces, &count, &told) ==
           MMX_STATUS_OK);
    EXPECT(count.pieces == 2 && told.finish == MMX_FINISH_CANCELLED);
    EXPECT(count.other.status == MMX_STATUS_BUSY);
    EXPECT(strstr(count.other.said, "another thread") != NULL);

    step_by_step(session, ids, 3);
    size_t hidden = mmx_model_embedding_size(again);
    EXPECT(hidden > 0 && mmx_model_embedding_size(NULL) == 0 && hidden < 3 * vocabulary);
    EXPECT(mmx_session_reuse(session, ids, 0, &n) == MMX_STATUS_OK);
    EXPECT(mmx_embed(session, ids, 3, logits, hidden - 1) == MMX_STATUS_TOO_SMALL);
    EXPECT(mmx_embed(session, ids, 3, NULL, hidden) == MMX_STATUS_INVALID_ARGUMENT);
    EXPECT(mmx_embed(session, ids, 0, logits, hidden) == MMX_STATUS_FAILED);
    logits[0] = logits[hidden - 1] = 1e9f;
    EXPECT(mmx_session_reuse(session, ids, 0, &n) == MMX_STATUS_OK);
    EXPECT(mmx_embed(session, ids, 3, logits, hidden) == MMX_STATUS_OK);
    EXPECT(logits[0] != 1e9f && logits[hidden - 1] != 1e9f && mmx_session_length(session) == 3);
    mmx_model_free(again);

    /* a generation keeps its session */
    mmx_generation *final = NULL;
    bool more = false;
    EXPECT(mmx_session_reuse(session, ids, 0, &n) == MMX_STATUS_OK);
    EXPECT(mmx_generation_new(session, ids, 3, &request, &final) == MMX_STATUS_OK);
    mmx_session_free(session);
    EXPECT(mmx_generation_next(final, text, sizeof text, &n, &more) == MMX_STATUS_OK && more);
    mmx_generation_free(final);
    free(logits);
    if (faults == 0) printf("ok\n");
    return faults != 0;
}
