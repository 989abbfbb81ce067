package metrics

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// Sample is one line of an exposition.
type Sample struct {
	Name   string // with its suffix
	Labels map[string]string
	Value  float64
}

// Families are the samples of an exposition by the name of their family.
type Families map[string][]Sample

// suffixes are what a sample's name has after the name of its family, by kind.
var suffixes = map[Kind][]string{
	Counter: {"_total"}, Gauge: {""}, Info: {"_info"}, Histogram: {"_bucket", "_count", "_sum"},
}

var (
	nameForm   = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)
	sampleForm = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$`)
	labelForm  = regexp.MustCompile(`^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(,|$)`)
)

// parser is the state of Parse.
type parser struct {
	got   Families
	kinds map[string]Kind
	name  string // of the family that is open
	seen  map[string]bool
}

// Parse reads an exposition as strictly as this package writes it: every sample under the TYPE of
// its family, families in one piece, no sample twice, names and suffixes as the kind demands,
// histograms cumulative with a last bucket that equals the count, "# EOF" at the end.
func Parse(text []byte) (Families, error) {
	body, ok := strings.CutSuffix(string(text), "# EOF\n")
	if !ok {
		return nil, errors.New("it doesn't end with # EOF")
	}
	p := &parser{got: Families{}, kinds: map[string]Kind{}, seen: map[string]bool{}}
	for i, line := range strings.SplitAfter(body, "\n") {
		if line == "" {
			continue
		}
		line, ok := strings.CutSuffix(line, "\n")
		err := errors.New("no end of line")
		if ok {
			err = p.line(line)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %q: %w", i+1, line, err)
		}
	}
	for name, kind := range p.kinds {
		if len(p.got[name]) == 0 {
			return nil, fmt.Errorf("family %s has no sample", name)
		}
		if kind == Histogram {
			if err := checkHistograms(name, p.got[name]); err != nil {
				return nil, err
			}
		}
	}
	return p.got, nil
}

func (p *parser) line(line string) error {
	if rest, ok := strings.CutPrefix(line, "# "); ok {
		return p.comment(rest)
	}
	m := sampleForm.FindStringSubmatch(line)
	if m == nil {
		return errors.New("not a sample")
	}
	suffix, ok := strings.CutPrefix(m[1], p.name)
	fits := false
	for _, s := range suffixes[p.kinds[p.name]] {
		fits = fits || s == suffix
	}
	if p.name == "" || !ok || !fits {
		return fmt.Errorf("not a sample of family %q", p.name)
	}
	labels, err := parseLabels(m[2])
	if err != nil {
		return err
	}
	value, err := strconv.ParseFloat(m[3], 64)
	kind := p.kinds[p.name]
	switch {
	case err != nil:
		return err
	case (kind == Counter || kind == Histogram) && (value < 0 || math.IsNaN(value)):
		return errors.New("a counter below zero")
	case kind == Info && value != 1:
		return errors.New("an info that isn't 1")
	case p.seen[m[1]+"{"+m[2]]:
		return errors.New("the second of that name and labels")
	}
	p.seen[m[1]+"{"+m[2]] = true
	p.got[p.name] = append(p.got[p.name], Sample{m[1], labels, value})
	return nil
}

func (p *parser) comment(text string) error {
	word, rest, _ := strings.Cut(text, " ")
	name, rest, ok := strings.Cut(rest, " ")
	if !ok || !nameForm.MatchString(name) {
		return errors.New("not a comment with a name and a text")
	}
	switch word {
	case "TYPE":
		if _, known := suffixes[Kind(rest)]; !known {
			return errors.New("unknown kind")
		}
		if p.kinds[name] != "" {
			return errors.New("the family comes twice")
		}
		p.kinds[name], p.name = Kind(rest), name
	case "UNIT":
		if name != p.name || !strings.HasSuffix(name, "_"+rest) {
			return errors.New("the family's name doesn't end with the unit")
		}
	case "HELP":
		if name != p.name || rest == "" {
			return errors.New("a help out of place, or empty")
		}
	default:
		return errors.New("unknown comment")
	}
	return nil
}

func parseLabels(text string) (map[string]string, error) {
	labels := map[string]string{}
	for text != "" {
		m := labelForm.FindStringSubmatch(text)
		if m == nil {
			return nil, errors.New("not labels")
		}
		if _, twice := labels[m[1]]; twice {
			return nil, fmt.Errorf("label %s twice", m[1])
		}
		labels[m[1]] = strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\"`, `"`).Replace(m[2])
		text = text[len(m[0]):]
		if m[3] == "," && text == "" {
			return nil, errors.New("a comma without a label behind it")
		}
	}
	return labels, nil
}

// checkHistograms looks at each histogram of a family; they may be interleaved by no other lines.
func checkHistograms(name string, samples []Sample) error {
	last, bound := 0.0, math.Inf(-1)
	for _, s := range samples {
		switch s.Name {
		case name + "_bucket":
			le, err := strconv.ParseFloat(s.Labels["le"], 64)
			if err != nil || le <= bound || s.Value < last {
				return fmt.Errorf("%s: bucket %q isn't above the one before", name, s.Labels["le"])
			}
			last, bound = s.Value, le
		case name + "_count":
			if !math.IsInf(bound, 1) || s.Value != last {
				return fmt.Errorf("%s: the count isn't the bucket +Inf", name)
			}
			last, bound = 0, math.Inf(-1)
		}
	}
	if !math.IsInf(bound, -1) {
		return fmt.Errorf("%s: buckets without a count", name)
	}
	return nil
}

// Value returns the sample of that name whose labels include the given ones (names and values in
// turn), and whether there is exactly one.
func (f Families) Value(family string, labels ...string) (float64, bool) {
	n, value := 0, 0.0
next:
	for _, s := range f[family] {
		for i := 0; i+1 < len(labels); i += 2 {
			if s.Labels[labels[i]] != labels[i+1] {
				continue next
			}
		}
		n, value = n+1, s.Value
	}
	return value, n == 1
}
