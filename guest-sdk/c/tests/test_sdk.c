/* What tables, keys, JSON and errors do. */
#include "internal.h"
#include "testing.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- A projection that adds amounts. ---- */

typedef struct {
    int64_t amount;
} added_data;
FS_RECORD(added_type, added_data, FS_FIELD(added_data, amount));
typedef struct {
    fs_text last;
    uint64_t count;
    double rate;
} total;
FS_RECORD(total_type, total, FS_FIELD(total, last), FS_FIELD(total, count), FS_FIELD(total, rate));

static fs_table totals = FS_TABLE("total", total_type, FS_STRING);
static fs_table days = FS_TABLE("day", fs_u64, FS_STRING, FS_DATE);
static fs_table all = FS_TABLE("all", fs_i64, FS_NO_KIND);

static fs_status added(const fs_event *event, const void *data) {
    const added_data *added = data;
    if (added->amount == 13) {
        return fs_reject("%d is no amount", 13);
    }
    if (added->amount == 14) {
        return fs_retry("not yet");
    }
    fs_text name = fs_token(event, 2);
    total *of = fs_edit(&totals, FS_KEY(name));
    of->count++;
    of->last = event->data;
    of->rate = added->amount == 15 ? NAN : (double)added->amount;
    uint64_t count = of->count;
    fs_set(&days, FS_KEY(name, fs_date_of(event->time)), &count);
    *(int64_t *)fs_edit(&all, FS_NO_KEY) += added->amount;
    return FS_OK;
}

static fs_status removed(const fs_event *event, const void *data) {
    (void)data;
    fs_delete(&totals, FS_KEY(fs_token(event, 2)));
    return FS_OK;
}

/* Sees its own changes in a scan, and changes the value again behind it. */
static fs_status scanned(const fs_event *event, const void *data) {
    (void)data;
    total *mine = fs_edit(&totals, FS_KEY(fs_token(event, 2)));
    mine->count++;
    fs_scan scan = fs_scan_begin(&totals, (fs_range){0});
    while (fs_next(&scan)) {
        if (((const total *)scan.value)->count != mine->count) {
            return fs_reject("a scan does not see the change");
        }
    }
    mine->count++;
    return FS_OK;
}

static fs_status expired(const fs_event *event, const void *data) {
    (void)data;
    fs_key stop = FS_KEY(fs_token(event, 2), ((fs_date){fs_date_of(event->time).days - 2}));
    fs_range range = {.under = FS_KEY(fs_token(event, 2)), .before = &stop};
    return fs_delete_range(&days, range) == 2 ? FS_OK : fs_reject("other days expired");
}

static fs_status wrong_key(const fs_event *event, const void *data) {
    (void)data;
    fs_get(&days, FS_KEY(event->time, event->subject));
    return FS_OK;
}

static fs_status of_name(const void *arguments, fs_answer *answer) {
    const total *found = fs_get(&totals, FS_KEY(*(const fs_text *)arguments));
    if (found == NULL) {
        return FS_NOT_FOUND;
    }
    fs_answer_value(answer, &total_type, found);
    return FS_OK;
}

typedef struct {
    fs_text under;
    fs_date from, before, through, after;
    bool backwards;
    uint64_t limit;
} range_arguments;
FS_RECORD(range_type, range_arguments, FS_FIELD(range_arguments, under),
          FS_OPTIONAL(range_arguments, from), FS_OPTIONAL(range_arguments, before),
          FS_OPTIONAL(range_arguments, through), FS_OPTIONAL(range_arguments, after),
          FS_OPTIONAL(range_arguments, backwards), FS_OPTIONAL(range_arguments, limit));

static fs_status ranged(const void *arguments, fs_answer *answer) {
    const range_arguments *asked = arguments;
    fs_key from = FS_KEY(asked->under, asked->from), before = FS_KEY(asked->under, asked->before);
    fs_key through = FS_KEY(asked->under, asked->through), after = FS_KEY(asked->under, asked->after);
    fs_scan scan = fs_scan_begin(&days, (fs_range){
        .under = FS_KEY(asked->under), .backwards = asked->backwards, .limit = asked->limit,
        .from = asked->from.days ? &from : NULL, .before = asked->before.days ? &before : NULL,
        .through = asked->through.days ? &through : NULL, .after = asked->after.days ? &after : NULL});
    fs_answer_list(answer);
    while (fs_next(&scan)) {
        fs_date day = {(int32_t)scan.key.parts[1].number};
        fs_answer_value(answer, &fs_day, &day);
    }
    fs_answer_end(answer);
    return FS_OK;
}

static fs_status careless(const void *arguments, fs_answer *answer) {
    (void)arguments;
    *(int64_t *)fs_edit(&all, FS_NO_KEY) = 1;
    fs_answer_value(answer, &fs_bool, &(bool){true});
    return FS_OK;
}

static uint64_t hidden;
static fs_status hiding(const fs_event *event, const void *data) {
    (void)data;
    hidden++;
    fs_set(&days, FS_KEY("hidden", fs_date_of(event->time)), &hidden);
    return FS_OK;
}

const fs_projection foldstream_projection = {
    .name = "sums",
    .subjects = (const char *const[]){"sums.>", "sums", NULL},
    .tables = (fs_table *const[]){&totals, &days, &all, NULL},
    .handlers =
        (const fs_handler[]){
            {"added", added, &added_type},
            {"removed", removed, NULL},
            {"scanned", scanned, NULL},
            {"expired", expired, NULL},
            {"wrong", wrong_key, NULL},
            {"hiding", hiding, NULL},
            {0},
        },
    .queries =
        (const fs_query[]){
            {"total", "", of_name, &fs_string, NULL},
            {"days", "", ranged, &range_type, NULL},
            {"careless", "", careless, NULL, NULL},
            {0},
        },
};

/* ---- Tests. ---- */

static void values_are_changed_in_place_and_stored_once(void) {
    FS_GIVEN({"sums.a.added", "{\"amount\":1}"}, {"sums.a.added", "{\"amount\":2}"},
             {"sums.b.added", "{\"amount\":5}"}, {"sums.b.removed"}, {"sums.b.other", "no JSON"},
             {"else.b.added", "no JSON"});
    FS_EQUAL(fs_test_get("total/a"), "{\"last\":\"{\\\"amount\\\":2}\",\"count\":2,\"rate\":2.0}");
    FS_EQUAL(fs_test_get("total/b"), NULL);
    FS_EQUAL(fs_test_get("all"), "8");
    /* The texts of a value outlive the batch that they came with. */
    FS_GIVEN({"sums.a.scanned"});
    FS_EQUAL(fs_test_get("total/a"), "{\"last\":\"{\\\"amount\\\":2}\",\"count\":4,\"rate\":2.0}");
    fs_test_same_for_any_batching();
}

static void fails(fs_given bad, const char *message, bool retry) {
    fs_test_begin();
    const char *failure = FS_FAILURE({"sums.a.added", "{\"amount\":1}"}, bad);
    if (failure == NULL || strstr(failure, message) == NULL) {
        FS_EQUAL(failure, message);
    }
    FS_CHECK(fs_test_retries() == retry);
    FS_CHECK(fs_test_get("total/a") != NULL && fs_test_count("") == 3);
}

static void what_came_before_a_failing_event_is_kept(void) {
    static char longest[700];
    memset(longest, 'x', sizeof(longest) - 1);
    static char subject[1500];
    snprintf(subject, sizeof(subject), "sums.%s%s.added", longest, longest);
    fails((fs_given){"sums.a.added", "{\"amount\":13}"}, "13 is no amount (test_sdk.c:", false);
    fails((fs_given){"sums.a.added", "{\"amount\":14}"}, "not yet (test_sdk.c:", true);
    fails((fs_given){"sums.a.added", "{\"amount\":15}"},
          "the value of total/a cannot be stored: rate: expected a finite number", false);
    fails((fs_given){"sums.a.added", "{\"amount\":\"x\"}"},
          "event 2 (sums.a.added): amount: expected an integer, found a text", false);
    fails((fs_given){"sums.a.added", "\xff"}, "event 2 (sums.a.added): the data is not UTF-8", false);
    fails((fs_given){"sums", "{\"amount\":1}", .kind = "added"}, "subject sums has no such token", false);
    fails((fs_given){subject, "{\"amount\":1}"}, "table total: a key has 1404 bytes; at most 1024", false);
    fails((fs_given){"sums.a.wrong"}, "table day: a part of the key is of another type", false);
}

static void scans_cover_what_they_say(void) {
    for (int day = 1; day <= 5; day++) {
        char time[32];
        snprintf(time, sizeof(time), "2026-11-0%dT12:00:00Z", day);
        FS_GIVEN({"sums.x.added", "{\"amount\":1}", .time = time},
                 {"sums.y.added", "{\"amount\":1}", .time = time},
                 {"sums.z.added", "{\"amount\":1}", .time = time});
    }
#define DAY(number) "\"2026-11-0" #number "\""
    FS_EQUAL(fs_test_query("days", "{\"under\":\"y\"}"),
             "[" DAY(1) "," DAY(2) "," DAY(3) "," DAY(4) "," DAY(5) "]");
    FS_EQUAL(fs_test_query("days", "{\"under\":\"y\",\"from\":" DAY(2) ",\"before\":" DAY(4) "}"),
             "[" DAY(2) "," DAY(3) "]");
    FS_EQUAL(fs_test_query("days", "{\"under\":\"y\",\"from\":" DAY(2) ",\"through\":" DAY(4) "}"),
             "[" DAY(2) "," DAY(3) "," DAY(4) "]");
    FS_EQUAL(fs_test_query("days", "{\"under\":\"y\",\"backwards\":true,\"limit\":2}"),
             "[" DAY(5) "," DAY(4) "]");
    FS_EQUAL(fs_test_query("days", "{\"under\":\"y\",\"backwards\":true,\"after\":" DAY(3) "}"),
             "[" DAY(2) "," DAY(1) "]");
    FS_EQUAL(fs_test_query("days", "{\"under\":\"y\",\"from\":" DAY(4) ",\"before\":" DAY(2) "}"), "[]");
    FS_GIVEN({"sums.y.expired", .time = "2026-11-05T00:00:00Z"});
    FS_EQUAL(fs_test_query("days", "{\"under\":\"y\"}"), "[" DAY(3) "," DAY(4) "," DAY(5) "]");
    FS_EQUAL(fs_test_query("days", "{\"under\":\"z\",\"limit\":1}"), "[" DAY(1) "]");
}

static void queries_say_what_is_wrong(void) {
    FS_GIVEN({"sums.a.added", "{\"amount\":1}"});
    FS_EQUAL(fs_test_query("total", "\"nobody\""), NULL);
    FS_CHECK(fs_test_status() == FS_NOT_FOUND);
    FS_EQUAL(fs_test_query("total", "5"), NULL);
    FS_CHECK(fs_test_status() == FS_INVALID);
    FS_EQUAL(fs_test_query("total", NULL), NULL);
    FS_CHECK(fs_test_status() == FS_INVALID);
    FS_EQUAL(fs_test_query("careless", NULL), NULL);
    FS_EQUAL(fs_instance.message, "a query cannot change table all");
    FS_EQUAL(fs_test_get("all"), "1");
}

static void tables_that_grow_too_large_start_empty(void) {
    for (int round = 0; round < 2; round++) {
        for (int number = 0; number < 40000; number++) {
            char subject[32];
            snprintf(subject, sizeof(subject), "sums.%d.added", number);
            fs_event event = {.sequence = 1, .subject = fs_text_of(subject), .kind = FS_TEXT("added"),
                              .data = FS_TEXT("{\"amount\":1}")};
            FS_CHECK(fs_apply_batch(&event, 1) == FS_NO_EVENT);
            fs_release(&fs_instance.batch);
            if (fs_instance.entries > 40000) {
                FS_CHECK(fs_instance.entries <= 40000);
                return;
            }
        }
    }
    FS_CHECK(fs_test_count("total/") == 40000);
    FS_EQUAL(fs_test_get("all"), "80000");
    FS_EQUAL(fs_test_get("total/39999"), "{\"last\":\"{\\\"amount\\\":1}\",\"count\":2,\"rate\":1.0}");
}

/* ---- JSON. ---- */

typedef struct {
    bool flag;
    int8_t small;
    uint64_t large;
    double number;
    fs_text text;
    fs_date day;
    fs_time at;
} every;
FS_RECORD(every_type, every, FS_FIELD(every, flag), FS_FIELD(every, small), FS_FIELD(every, large),
          FS_FIELD(every, number), FS_FIELD(every, text), FS_FIELD(every, day), FS_FIELD(every, at));

static const char *again(const fs_type *type, const char *json) {
    static char written[600];
    char value[256] = {0};
    fs_instance.failure = FS_OK;
    fs_buffer buffer = {.arena = &fs_instance.batch};
    if (!fs_decode(&fs_instance.batch, fs_text_of(json), type, value) ||
        !fs_encode(&buffer, type, value)) {
        return fs_instance.message;
    }
    snprintf(written, sizeof(written), "%.*s", (int)buffer.length, buffer.at);
    return written;
}

static void values_are_written_in_one_form(void) {
    static const char whole[] =
        "{\"flag\":true,\"small\":-128,\"large\":18446744073709551615,\"number\":-1.5,\"text\":\"Zo\u00eb "
        "\\\"1\\\"\\n\\u0001\x7f\U0001f980\",\"day\":\"2024-02-29\",\"at\":\"2026-11-23T14:05:06.123456789Z\"}";
    FS_EQUAL(again(&every_type, whole), whole);
    static const char *const numbers[] = {"0.0", "1.0", "-1.5", "0.1", "123456789.125",
        "1000000000000000.0", "1e16", "1.5e300", "5e-324", "0.00001", "0.000012", "1e-6", "1.25e-7"};
    for (size_t place = 0; place < sizeof(numbers) / sizeof(*numbers); place++) {
        FS_EQUAL(again(&fs_f64, numbers[place]), numbers[place]);
    }
    FS_EQUAL(again(&fs_i64, "-9223372036854775808"), "-9223372036854775808");
    FS_EQUAL(again(&fs_string, " \"\\ud83e\\udd80\\u00eb\\/\" "), "\"\U0001f980\u00eb/\"");
    FS_EQUAL(again(&fs_null, "null"), "null");
}

static void what_does_not_match_its_type_is_refused(void) {
    static const struct {
        const fs_type *type;
        const char *json, *message;
    } bad[] = {
        {&added_type, "", "expected an object, found the end"},
        {&added_type, "[]", "expected an object, found a list"},
        {&added_type, "{}", "missing field `amount`"},
        {&added_type, "{\"amount\":1.5}",
         "amount: expected an integer from -9223372036854775808 to 9223372036854775807, found 1.5"},
        {&added_type, "{\"amount\":9223372036854775808}",
         "amount: expected an integer from -9223372036854775808 to 9223372036854775807, found "
         "9223372036854775808"},
        {&added_type, "{\"amount\":NaN}", "amount: expected an integer, found no JSON"},
        {&added_type, "{\"amount\":01}", "expected a comma or the end of an object at byte 11"},
        {&added_type, "{\"amount\":1,}", "expected a text, found no JSON"},
        {&added_type, "{\"amount\":1} x", "expected the end at byte 13"},
        {&added_type, "{\"amount\":1,\"amount\":1}", "two fields `amount`"},
        {&added_type, "{\"amount\":1,\"x\":[{\"y\":tru}]}", "expected a value at byte 22"},
        {&fs_u64, "-1", "expected an integer from 0 to 18446744073709551615, found -1"},
        {&fs_u64, "18446744073709551616",
         "expected an integer from 0 to 18446744073709551615, found 18446744073709551616"},
        {&fs_i8, "128", "expected an integer from -128 to 127, found 128"},
        {&fs_f64, "1e999", "expected a finite number, found 1e999"},
        {&fs_string, "\"\\ud800\"", "half of a pair of surrogates is no text"},
        {&fs_string, "\"\\ud800\\u0041\"", "half of a pair of surrogates is no text"},
        {&fs_string, "\"\\x\"", "expected an escape at byte 2"},
        {&fs_string, "\"a", "expected the end of a text, found the end"},
        {&fs_string, "\"\n\"", "expected no control character in a text at byte 1"},
        {&fs_string, "\"\xed\xa0\x80\"", "the data is not UTF-8"},
        {&fs_day, "\"2026-02-29\"", "expected a date such as 2026-11-23, 1970 to 9999"},
        {&fs_instant, "\"2026-11-23\"", "expected a time such as 2026-11-23T14:05:06Z, 1970 to 2554"},
    };
    for (size_t place = 0; place < sizeof(bad) / sizeof(*bad); place++) {
        FS_EQUAL(again(bad[place].type, bad[place].json), bad[place].message);
    }
    static char deep[100000];
    memset(deep, '[', sizeof(deep) - 1);
    memcpy(deep, "{\"x\":", 5);
    FS_EQUAL(again(&added_type, deep), "JSON is nested more than 128 deep");
}

/* ---- Data of events: conformance/data.json. ---- */

typedef struct {
    fs_text name;
} person;
FS_RECORD(person_type, person, FS_FIELD(person, name));
typedef struct {
    fs_text order;
    uint64_t cents;
    int64_t delta;
    double rate;
    person by;
} placed_data;
FS_RECORD(placed_type, placed_data, FS_FIELD(placed_data, order), FS_FIELD(placed_data, cents),
    FS_OPTIONAL(placed_data, delta), FS_OPTIONAL(placed_data, rate),
    {"by", offsetof(placed_data, by), &person_type, true});

static void data_is_taken_and_rejected_as_in_every_language(void) {
    char line[1024], shown[1024];
    int counts[2] = {0};
    bool wanted = true;
    FILE *file = fopen("../../conformance/data.json", "r");
    FS_CHECK(file != NULL);
    while (file != NULL && fgets(line, sizeof(line), file) != NULL && strstr(line, "\"maps\": {") == NULL) {
        wanted = wanted && strstr(line, "\"rejected\": [") == NULL;
        /* Data that is taken is a member, data that is rejected is the whole line. */
        char *begin = strstr(line, wanted ? "\"data\": \"" : "    \"");
        if (begin == NULL) {
            continue;
        }
        begin += wanted ? 8 : 4;
        char *end = wanted ? strstr(begin, ", \"stored\"") : strrchr(begin, '"') + 1;
        fs_text json;
        placed_data value;
        fs_instance.failure = FS_OK;
        FS_CHECK(fs_decode(&fs_instance.batch, (fs_text){begin, (size_t)(end - begin)}, &fs_string, &json));
        bool taken = fs_decode(&fs_instance.batch, json, &placed_type, &value);
        snprintf(shown, sizeof(shown), "%.*s is %s", (int)(end - begin), begin, wanted ? "taken" : "rejected");
        if (taken != wanted) {
            FS_EQUAL("it is not", shown);
        }
        counts[wanted]++;
    }
    FS_CHECK(counts[true] > 10 && counts[false] > 20);
    fclose(file);
}

/* ---- Keys: conformance/keys.json. ---- */

static fs_kind kind_of(fs_text name) {
    static const char *const names[] = {"bool", "u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64",
        "", "text", "date", "time"};
    for (size_t place = 0; place < sizeof(names) / sizeof(*names); place++) {
        if (fs_text_equal(name, fs_text_of(names[place]))) {
            return FS_BOOL + (fs_kind)place;
        }
    }
    return FS_NO_KIND;
}

static fs_part part_of(fs_kind kind, fs_text json) {
    char value[64] = {0};
    const fs_type *type = kind == FS_STRING ? &fs_string : kind == FS_DATE ? &fs_day
        : kind == FS_TIME ? &fs_instant : kind == FS_BOOL ? &fs_bool : kind >= FS_I8 ? &fs_i64 : &fs_u64;
    FS_CHECK(fs_decode(&fs_instance.batch, json, type, value));
    switch (kind) {
    case FS_STRING: return FS_PART(*(fs_text *)(void *)value);
    case FS_DATE: return FS_PART(*(fs_date *)(void *)value);
    case FS_TIME: return FS_PART(*(fs_time *)(void *)value);
    case FS_BOOL: return FS_PART(*(bool *)(void *)value);
    default:
        return kind >= FS_I8 ? FS_PART(*(int64_t *)(void *)value) : FS_PART(*(uint64_t *)(void *)value);
    }
}

/* The next element of a list in JSON, which is written as in the file; false behind the last. */
static bool element(const char **at, fs_text *found) {
    const char *from = *at + strspn(*at, "[ ,");
    size_t length = *from == '"' ? (size_t)(strchr(from + 1, '"') - from) + 1 : strcspn(from, ",] ");
    while (*from == '"' && from[length - 2] == '\\') {
        length += (size_t)(strchr(from + length, '"') - from - (long)length) + 1;
    }
    *found = (fs_text){from, length};
    *at = from + length;
    return *from != ']' && *from != 0;
}

static void vector(char *line) {
    fs_kind kinds[4] = {FS_NO_KIND};
    fs_key key = {0}, read;
    const char *types = strchr(strstr(line, "\"types\""), '['), *parts = strstr(line, "\"key\"");
    fs_text item, text = {0};
    fs_instance.failure = FS_OK;
    for (size_t place = 0; element(&types, &item); place++) {
        kinds[place] = kind_of((fs_text){item.at + 1, item.length - 2});
        FS_CHECK(kinds[place] != FS_NO_KIND);
    }
    const char *json = strstr(line, "\"text\": ") + 8;
    fs_text quoted = {json, (size_t)(strrchr(json, '"') - json) + 1};
    FS_CHECK(fs_decode(&fs_instance.batch, quoted, &fs_string, &text));
    if (parts == NULL) {
        FS_CHECK(!fs_read_key(&fs_instance.batch, kinds, text, &read));
        return;
    }
    parts = strchr(parts, '[');
    for (; element(&parts, &item); key.count++) {
        key.parts[key.count] = part_of(kinds[key.count], item);
    }
    fs_buffer buffer = {.arena = &fs_instance.batch};
    FS_CHECK(fs_write_key(&buffer, kinds, key));
    FS_EQUAL(fs_copy(fs_written(&buffer)).at, fs_copy(text).at);
    FS_CHECK(fs_read_key(&fs_instance.batch, kinds, text, &read));
    fs_buffer back = {.arena = &fs_instance.batch};
    FS_CHECK(fs_write_key(&back, kinds, read));
    FS_EQUAL(fs_copy(fs_written(&back)).at, fs_copy(text).at);
}

static void keys_are_written_and_read_as_in_every_language(void) {
    char line[1024];
    int count = 0;
    FILE *file = fopen("../../conformance/keys.json", "r");
    FS_CHECK(file != NULL);
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        if (strstr(line, "\"types\"") != NULL) {
            vector(line);
            count++;
        }
    }
    FS_CHECK(count > 40);
    fclose(file);
}

static void numbers_that_do_not_fit_are_no_keys(void) {
    static const fs_kind small[4] = {FS_U8}, signed_small[4] = {FS_I8}, day[4] = {FS_DATE};
    fs_buffer buffer = {.arena = &fs_instance.batch};
    FS_CHECK(fs_write_key(&buffer, small, FS_KEY(255)) && fs_write_key(&buffer, signed_small, FS_KEY(-128)));
    FS_CHECK(!fs_write_key(&buffer, small, FS_KEY(256)) && !fs_write_key(&buffer, small, FS_KEY(-1)));
    FS_CHECK(!fs_write_key(&buffer, signed_small, FS_KEY(128)));
    FS_CHECK(!fs_write_key(&buffer, day, FS_KEY((fs_date){-1})));
    FS_CHECK(!fs_write_key(&buffer, small, FS_KEY("1")) && !fs_write_key(&buffer, small, FS_KEY(1, 2)));
}

static void log_is_utf8(fs_level level, fs_text message) {
    (void)level;
    FS_CHECK(message.length > 0 && fs_is_utf8(message));
}

static void messages_are_utf8_wherever_they_are_cut(void) {
    /* A message has an odd number of bytes at most, and each of these characters has two. */
    char text[FS_MESSAGE_MAX + 3] = {0};
    for (size_t place = 0; place < FS_MESSAGE_MAX; place += 2) {
        memcpy(text + place, "\xC3\xAB", 2);
    }
    fs_backend backend = *fs_instance.backend;
    const fs_backend *before = fs_instance.backend;
    backend.log = log_is_utf8;
    fs_instance.backend = &backend;
    fs_log(FS_INFO, "%s", text);
    fs_log(FS_INFO, "data %s", "\xFF");
    fs_instance.backend = before;
    fs_instance.failure = FS_OK;
    fs_mismatch("%s", text);
    FS_CHECK(strlen(fs_instance.message) == FS_MESSAGE_MAX - 1);
    FS_CHECK(fs_is_utf8(fs_text_of(fs_instance.message)));
    fs_within("field %d: ", 1);
    FS_CHECK(fs_is_utf8(fs_text_of(fs_instance.message)));
    fs_instance.failure = FS_OK;
    (void)fs_reject("a%cb, \xF0\x9F, \xED\xA0\x80, \xF0\x9F\xA6\x80", 0x80);
    FS_CHECK(strstr(fs_instance.message, "a?b, ??, ???, \xF0\x9F\xA6\x80 (") == fs_instance.message);
    fs_instance.failure = FS_OK;
}

int main(void) {
    FS_TEST(values_are_changed_in_place_and_stored_once);
    FS_TEST(what_came_before_a_failing_event_is_kept);
    FS_TEST(scans_cover_what_they_say);
    FS_TEST(queries_say_what_is_wrong);
    FS_TEST(tables_that_grow_too_large_start_empty);
    FS_TEST(values_are_written_in_one_form);
    FS_TEST(what_does_not_match_its_type_is_refused);
    FS_TEST(data_is_taken_and_rejected_as_in_every_language);
    FS_TEST(keys_are_written_and_read_as_in_every_language);
    FS_TEST(numbers_that_do_not_fit_are_no_keys);
    FS_TEST(messages_are_utf8_wherever_they_are_cut);
    return fs_test_end();
}
