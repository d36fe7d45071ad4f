#include "testing.h"

static void orders_add_up_per_customer_and_day(void) {
    FS_GIVEN(
        {"orders.ada.placed", "{\"order\":\"1\",\"total_cents\":1000}", .time = "2026-10-01T23:59:59Z"},
        {"orders.ada.placed", "{\"order\":\"2\",\"total_cents\":500}", .time = "2026-10-02T00:00:00Z"},
        {"orders.grace.placed", "{\"order\":\"3\",\"total_cents\":700}"},
        {"orders.ada.paid", "{\"order\":\"1\",\"method\":\"card\"}"},
        {"orders.ada.shipped", "{\"order\":\"1\",\"carrier\":\"post\"}"});

    FS_EQUAL(fs_test_query("customer", "{\"customer\":\"ada\"}"),
             "{\"orders\":2,\"total_cents\":1500,\"paid_cents\":1000,\"shipped\":1}");
    FS_EQUAL(fs_test_query("days", "{\"customer\":\"ada\",\"from\":\"2026-10-02\",\"to\":\"2026-10-30\"}"),
             "[[\"2026-10-02\",{\"orders\":1,\"total_cents\":500,\"paid_cents\":0,\"shipped\":0}]]");
    fs_test_same_for_any_batching();
}

static void cancelled_and_returned_orders_count_on_the_day_they_were_placed(void) {
    FS_GIVEN(
        {"orders.ada.placed", "{\"order\":\"1\",\"total_cents\":1000}", .time = "2026-10-01T10:00:00Z"},
        {"orders.ada.placed", "{\"order\":\"2\",\"total_cents\":500}", .time = "2026-10-01T11:00:00Z"},
        {"orders.ada.cancelled", "{\"order\":\"1\"}", .time = "2026-10-03T00:00:00Z"},
        {"orders.ada.returned", "{\"order\":\"2\",\"refund_cents\":200}"});

    /* A second cancellation finds no order. */
    FS_GIVEN({"orders.ada.cancelled", "{\"order\":\"1\"}"});
    FS_EQUAL(fs_test_get("day/ada/2026-10-01"),
             "{\"orders\":1,\"total_cents\":300,\"paid_cents\":0,\"shipped\":0}");
    FS_CHECK(fs_test_count("day/") == 1);
}

static void ranking_has_each_customer_once_and_the_largest_total_first(void) {
    FS_GIVEN({"orders.ada.placed", "{\"order\":\"1\",\"total_cents\":100}"},
             {"orders.grace.placed", "{\"order\":\"2\",\"total_cents\":900}"},
             {"orders.ada.placed", "{\"order\":\"3\",\"total_cents\":5000}"});
    FS_GIVEN({"orders.ada.cancelled", "{\"order\":\"3\"}"});

    FS_EQUAL(fs_test_query("top-customers", "{\"limit\":1}"),
             "[{\"customer\":\"grace\",\"total_cents\":900}]");
    FS_EQUAL(fs_test_query("top-customers", NULL),
             "[{\"customer\":\"grace\",\"total_cents\":900},{\"customer\":\"ada\",\"total_cents\":100}]");
}

static void an_order_that_was_never_placed_changes_nothing(void) {
    FS_GIVEN({"orders.ada.paid", "{\"order\":\"1\"}"}, {"orders.ada.praised"});
    FS_CHECK(fs_test_count("") == 0);
}

static void an_event_without_its_fields_is_rejected(void) {
    const char *failure = FS_FAILURE({"orders.ada.placed", "{\"order\":\"1\",\"total_cents\":1}"},
                                     {"orders.ada.placed"});
    FS_EQUAL(failure, "event 2 (orders.ada.placed): missing field `order`");
    /* What came before is kept. */
    FS_CHECK(fs_test_get("customer/ada") != NULL);
}

static void sample_events_give_the_same_for_any_batching(void) {
    fs_test_given_file("../../../../examples/order-totals/events.ndjson");
    FS_CHECK(fs_test_count("customer/") > 3);
    fs_test_same_for_any_batching();
}

int main(void) {
    FS_TEST(orders_add_up_per_customer_and_day);
    FS_TEST(cancelled_and_returned_orders_count_on_the_day_they_were_placed);
    FS_TEST(ranking_has_each_customer_once_and_the_largest_total_first);
    FS_TEST(an_order_that_was_never_placed_changes_nothing);
    FS_TEST(an_event_without_its_fields_is_rejected);
    FS_TEST(sample_events_give_the_same_for_any_batching);
    return fs_test_end();
}
