package perf

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
)

func TestFigures(t *testing.T) {
	r := Report{Machine: "a machine", Figures: []Figure{
		{Name: "high_enough", Value: 2, Goal: 2, AtLeast: true, Unit: "x", Values: []float64{4, 2, 6}},
		{Name: "too_low", Value: 1.9, Goal: 2, AtLeast: true, Ours: []float64{1}},
		{Name: "small_enough", Value: 5, Goal: 5, Ours: []float64{5}},
		{Name: "too_much", Value: 5.1, Goal: 5, Ours: []float64{5.1}},
	}}
	var table bytes.Buffer
	if err := r.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(table.String(), "\n") {
		name, _, _ := strings.Cut(line, " ")
		miss := strings.HasPrefix(name, "too_")
		if strings.Contains(name, "_") && strings.Contains(line, "MISS") != miss {
			t.Errorf("wrong verdict: %s", line)
		}
	}
	if !strings.Contains(table.String(), "2-6") {
		t.Errorf("no spread of the rounds: %s", table.String())
	}
	var text bytes.Buffer
	var doc map[string]any
	if err := r.WriteJSON(&text); err != nil || json.Unmarshal(text.Bytes(), &doc) != nil {
		t.Fatalf("JSON: %v, %s", err, text.String())
	}
	if doc["too_low"] != 1.9 || doc["report"] == nil {
		t.Errorf("JSON: %s", text.String())
	}
}

func TestEngineOptions(t *testing.T) {
	for name, o := range map[string]EngineOptions{
		"unknown row": {Rows: []string{"tape"}}, "tiny set": {Set: 4096}, "rounds": {Rounds: -1},
	} {
		o.Binary, o.Dir = "/nowhere", t.TempDir()
		if _, err := Engine(context.Background(), o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
