package main

import (
	"errors"
	"testing"

	"foldstream"
)

func TestVisitsAreCountedPerPage(t *testing.T) {
	visits := foldstream.NewHarness(t, Starter)
	visits.Given(
		foldstream.Given{Subject: "visits.home"},
		foldstream.Given{Subject: "visits.about"},
		foldstream.Given{Subject: "visits.home"},
	)

	if got := visits.Answer("visits", "home"); got != "2" {
		t.Errorf("home was visited %s times", got)
	}
	if got := visits.Get("page/about"); got != "1" {
		t.Errorf("about was visited %s times", got)
	}
	visits.SameForAnyBatching()
}

func TestPageThatNobodyVisitedIsNotFound(t *testing.T) {
	_, err := foldstream.NewHarness(t, Starter).Query("visits", "nowhere")
	if !errors.Is(err, foldstream.ErrNotFound) {
		t.Errorf("found %v", err)
	}
}
