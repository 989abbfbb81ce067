// Package metrics is how the daemons show their counters to monitoring systems: a writer of the
// OpenMetrics text format (version 1.0.0), a strict parser of the same, and the HTTP endpoint.
package metrics

import (
	"bytes"
	"math"
	"strconv"
	"strings"
)

// Kind is the type of a metric family.
type Kind string

// The kinds in use here.
const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram"
	Info      Kind = "info"
)

// ContentType is what the text is served as.
const ContentType = "application/openmetrics-text; version=1.0.0; charset=utf-8"

// Text is an exposition being written. Its zero value is ready; it isn't safe for concurrent use.
// Families come out in the order in which they were begun, and samples of one family together,
// however they were added.
type Text struct {
	families []*textFamily
	byName   map[string]*textFamily
}

type textFamily struct {
	kind    Kind
	head    string
	name    string
	samples bytes.Buffer
}

// Family is where samples of one name are added.
type Family struct{ f *textFamily }

// Family begins the family name, or goes on with it. unit is the last part of the name
// ("seconds", "bytes") or empty.
func (t *Text) Family(kind Kind, name, unit, help string) Family {
	if f := t.byName[name]; f != nil {
		return Family{f}
	}
	head := "# TYPE " + name + " " + string(kind) + "\n"
	if unit != "" {
		head += "# UNIT " + name + " " + unit + "\n"
	}
	head += "# HELP " + name + " " + escape(help) + "\n"
	f := &textFamily{kind: kind, head: head, name: name}
	if t.byName == nil {
		t.byName = make(map[string]*textFamily)
	}
	t.byName[name] = f
	t.families = append(t.families, f)
	return Family{f}
}

// Add adds a sample. labels are names and values in turn.
func (f Family) Add(value float64, labels ...string) {
	suffix := map[Kind]string{Counter: "_total", Info: "_info"}[f.f.kind]
	f.sample(suffix, value, labels)
}

func (f Family) sample(suffix string, value float64, labels []string) {
	b := &f.f.samples
	b.WriteString(f.f.name + suffix)
	for i := 0; i+1 < len(labels); i += 2 {
		if i == 0 {
			b.WriteByte('{')
		} else {
			b.WriteByte(',')
		}
		b.WriteString(labels[i] + `="` + escape(labels[i+1]) + `"`)
	}
	if len(labels) > 1 {
		b.WriteByte('}')
	}
	b.WriteString(" " + number(value) + "\n")
}

// AddHistogram adds a histogram: counts[i] is how many measurements were at most bounds[i] and
// above bounds[i-1]; there is one count more, of those above all bounds.
func (f Family) AddHistogram(bounds []float64, counts []uint64, sum float64, labels ...string) {
	total := uint64(0)
	for i, n := range counts {
		total += n
		bound := "+Inf"
		if i < len(bounds) {
			bound = number(bounds[i])
			if !strings.ContainsAny(bound, ".e") {
				bound += ".0" // OpenMetrics: canonical floats
			}
		}
		f.sample("_bucket", float64(total), append(labels[:len(labels):len(labels)], "le", bound))
	}
	f.sample("_count", float64(total), labels)
	f.sample("_sum", sum, labels)
}

// Bytes returns the whole exposition.
func (t *Text) Bytes() []byte {
	var b bytes.Buffer
	for _, f := range t.families {
		if f.samples.Len() > 0 {
			b.WriteString(f.head)
			b.Write(f.samples.Bytes())
		}
	}
	b.WriteString("# EOF\n")
	return b.Bytes()
}

func number(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1e15 {
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

var escaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

func escape(s string) string { return escaper.Replace(strings.ToValidUTF8(s, "?")) }
