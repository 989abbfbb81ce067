package perf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// This file is about what a report hasn't got: what this machine can't run, what failed. One row
// that fails doesn't take the figures of the others with it.

// rowRun is a row of Engine or Recovery that is to run.
type rowRun struct {
	name    string
	figures []string // that it gives
	lacks   error    // why it can't run on this machine; nil: it can
	run     func() ([]Figure, error)
}

// skip notes why figures aren't there. What is known of a figure already stays.
func (r *Report) skip(why string, figures ...string) {
	if r.Skipped == nil {
		r.Skipped = map[string]string{}
	}
	for _, name := range figures {
		if _, known := r.Skipped[name]; !known {
			r.Skipped[name] = why
		}
	}
}

// measure runs rows and adds their figures. One that can't run, or fails, is named in the report,
// and the others run all the same; the error says which failed. An interrupt ends it.
func (r *Report) measure(ctx context.Context, rows []rowRun) error {
	var errs []error
	for _, row := range rows {
		if row.lacks != nil {
			r.skip(row.lacks.Error(), row.figures...)
			continue
		}
		figures, err := row.run()
		r.Figures = append(r.Figures, figures...)
		if err != nil {
			err = fmt.Errorf("row %s: %w", row.name, err)
			errs = append(errs, err)
			r.skip("failed: "+err.Error(), slices.DeleteFunc(slices.Clone(row.figures),
				func(name string) bool {
					return slices.ContainsFunc(figures, func(f Figure) bool { return f.Name == name })
				})...)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if len(r.Figures) == 0 && len(errs) == 0 {
		errs = append(errs, fmt.Errorf("nothing could be measured: %s",
			strings.Join(r.MissingLines(), "; ")))
	}
	return errors.Join(errs...)
}

// MissingLines has a line for each reason for which figures aren't there, with their names.
func (r *Report) MissingLines() []string {
	names := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(r.Skipped)) {
		names[r.Skipped[name]] = append(names[r.Skipped[name]], name)
	}
	var lines []string
	for why, list := range names {
		lines = append(lines, strings.Join(list, ", ")+": "+why)
	}
	slices.Sort(lines)
	return lines
}

// skipFronts notes the rows of want that aren't among those that can be run, with the reasons by
// front end.
func (r *Report) skipFronts(want, can []Row, why map[string]string) {
	for _, row := range want {
		if slices.ContainsFunc(can, func(c Row) bool { return c.Name == row.Name }) {
			continue
		}
		reason := why[row.Ours.Front]
		if reason == "" {
			reason = why[row.Yardstick.Front]
		}
		r.skip(reason, row.Name)
	}
}
