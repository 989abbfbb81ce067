package packaging

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var metricName = regexp.MustCompile(`\bpstorage_[a-z_]+`)

// TestMonitoringNames: rules and dashboard ask only for what the daemons tell.
func TestMonitoringNames(t *testing.T) {
	var told []string
	sources, _ := filepath.Glob("../*/*.go")
	literal := regexp.MustCompile(`"(pstorage_[a-z_]+)"`)
	for _, file := range sources {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range literal.FindAllSubmatch(text, -1) {
			told = append(told, string(m[1]))
		}
	}
	if len(told) < 40 {
		t.Fatalf("only %d names found in the sources", len(told))
	}
	for _, file := range []string{"monitoring/alerts.yml", "monitoring/dashboard.json"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		names := metricName.FindAllString(string(text), -1)
		if len(names) < 10 {
			t.Errorf("%s: only %d names", file, len(names))
		}
		for _, name := range names {
			base := strings.TrimSuffix(strings.TrimSuffix(name, "_total"), "_bucket")
			if !slices.Contains(told, base) {
				t.Errorf("%s asks for %s, which nobody tells", file, name)
			}
		}
	}
}

func TestDashboardAndRules(t *testing.T) {
	text, err := os.ReadFile("monitoring/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Title  string
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &doc); err != nil || doc.Title != "pstorage" {
		t.Fatalf("dashboard: %v, %q", err, doc.Title)
	}
	for _, p := range doc.Panels {
		if p.ID == 0 || p.Title == "" || len(p.Targets) == 0 || p.Targets[0].Expr == "" {
			t.Errorf("panel %+v", p)
		}
	}
	rules, err := os.ReadFile("monitoring/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	n := strings.Count(string(rules), "- alert: ")
	for _, part := range []string{"expr: ", "labels: {severity: ", "summary: "} {
		if strings.Count(string(rules), part) != n {
			t.Errorf("%d alerts, %d of %q", n, strings.Count(string(rules), part), part)
		}
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool isn't installed: the expressions aren't checked")
	}
	if out, err := exec.Command(promtool, "check", "rules", "monitoring/alerts.yml").
		CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}
