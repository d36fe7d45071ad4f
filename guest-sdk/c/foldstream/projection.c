/* One running instance of the projection. */
#include "internal.h"

#include <string.h>

fs_state fs_instance = {.event = FS_NO_EVENT, .blamed = FS_NO_EVENT, .writable = true};

fs_text fs_token(const fs_event *event, unsigned number) {
    const char *from = event->subject.at, *end = from + event->subject.length;
    for (const char *at = from; number > 0; at++) {
        if (at == end || *at == '.') {
            if (--number == 0) {
                return (fs_text){from, (size_t)(at - from)};
            }
            from = at + 1;
        }
        if (at == end) {
            break;
        }
    }
    fs_mismatch("subject %.*s has no such token", (int)event->subject.length, event->subject.at);
    return (fs_text){"", 0};
}

bool fs_data(const fs_event *event, const fs_type *type, void *into) {
    if (type->size > 0) {
        memset(into, 0, type->size);
    }
    if (fs_decode(&fs_instance.batch, event->data, type, into)) {
        return true;
    }
    fs_within("event %llu (%.*s): ", (unsigned long long)event->sequence, (int)event->subject.length,
        event->subject.at);
    return false;
}

static fs_status apply_one(const fs_event *event) {
    const fs_projection *projection = &foldstream_projection;
    const fs_handler *handler = projection->handlers;
    for (; handler != NULL && handler->kind != NULL; handler++) {
        if (!fs_text_equal(event->kind, fs_text_of(handler->kind))) {
            continue;
        }
        if (handler->type == NULL) {
            return handler->handle(event, NULL);
        }
        void *data = fs_allocate(&fs_instance.batch, handler->type->size);
        return fs_data(event, handler->type, data) ? handler->handle(event, data) : FS_REJECTED;
    }
    return projection->apply == NULL ? FS_OK : projection->apply(event);
}

int fs_apply_batch(const fs_event *events, size_t count) {
    fs_state *state = &fs_instance;
    state->failure = FS_OK;
    state->blamed = FS_NO_EVENT;
    state->writable = true;
    int last = 0;
    for (size_t place = 0; place < count && state->failure == FS_OK; place++) {
        last = state->event = (int)place;
        if (apply_one(&events[place]) != FS_OK) {
            /* Kept only if there is no message of its own. */
            fs_mismatch("the function for the event failed, and did not say why");
        }
        state->event = FS_NO_EVENT;
        if (state->failure == FS_OK) {
            fs_make_room();
        }
    }
    /* Once for all events: a value that many of them change is encoded once. */
    if (state->failure == FS_OK && fs_flush()) {
        return FS_NO_EVENT;
    }
    /* What the tables hold no longer matches the host's state. */
    fs_reset();
    return state->blamed == FS_NO_EVENT ? last : state->blamed;
}

/* ---- Queries. ---- */

struct fs_answer {
    fs_buffer json;
    /* Whether the next element has one before it. */
    bool comma;
};

static void separate(fs_answer *answer) {
    if (answer->comma) {
        fs_put_char(&answer->json, ',');
    }
    answer->comma = true;
}

void fs_answer_value(fs_answer *answer, const fs_type *type, const void *value) {
    separate(answer);
    fs_encode(&answer->json, type, value);
}

void fs_answer_list(fs_answer *answer) {
    separate(answer);
    fs_put_char(&answer->json, '[');
    answer->comma = false;
}

void fs_answer_end(fs_answer *answer) {
    fs_put_char(&answer->json, ']');
    answer->comma = true;
}

static bool is_blank(fs_text text) {
    size_t place = 0;
    while (place < text.length && strchr(" \t\r\n", text.at[place]) != NULL) {
        place++;
    }
    return place == text.length;
}

static fs_status run(const fs_query *query, fs_text arguments, fs_answer *answer) {
    const fs_type *type = query->arguments;
    void *given = NULL;
    if (type != NULL) {
        given = fs_allocate(&fs_instance.batch, type->size);
        memset(given, 0, type->size);
        if (query->defaults != NULL) {
            memcpy(given, query->defaults, type->size);
        }
        /* None were given: an object without fields. */
        if (!fs_decode(&fs_instance.batch, is_blank(arguments) ? FS_TEXT("{}") : arguments, type, given)) {
            fs_instance.failure = FS_INVALID;
            return FS_INVALID;
        }
    }
    fs_status status = query->answer(given, answer);
    /* What it reads may have failed, whatever it returns. */
    return fs_instance.failure != FS_OK ? fs_instance.failure : status;
}

fs_status fs_answer_query(fs_text name, fs_text arguments, fs_text *text, bool *known) {
    /* What is only in memory is not of the snapshot. */
    fs_reset();
    fs_instance.failure = FS_OK;
    fs_instance.writable = false;
    const fs_query *query = foldstream_projection.queries;
    while (query != NULL && query->name != NULL && !fs_text_equal(name, fs_text_of(query->name))) {
        query++;
    }
    *known = query != NULL && query->name != NULL;
    fs_answer answer = {.json = {.arena = &fs_instance.batch}};
    fs_status status = *known ? run(query, arguments, &answer) : FS_NOT_FOUND;
    *text = fs_written(&answer.json);
    fs_reset();
    return status;
}
