package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/perf"
)

// planFlags are those of quick and bench.
type planFlags struct {
	o       perf.BenchOptions
	size    cli.Size
	journal cli.Size
	seconds float64
	within  float64
	least   map[string]string
	most    map[string]string
	json    bool
	bars    bool
	out     string
}

func (p *planFlags) add(cmd *cobra.Command, seconds float64, size, journal cli.Size) {
	p.o.Progress, p.size, p.journal = os.Stderr, size, journal
	flags := cmd.Flags()
	flags.StringVar(&p.o.Dir, "dir", "", "directory on the disk to be measured (default /var/tmp)")
	flags.IntVar(&p.o.Rounds, "rounds", 3, "interleaved rounds")
	flags.IntVar(&p.o.CS, "cs", 3, "chunk servers")
	flags.Float64Var(&p.seconds, "seconds", seconds, "of one measurement")
	flags.Var(&p.size, "size", "of the file")
	flags.Var(&p.journal, "journal", "of each chunk server")
	flags.BoolVar(&p.json, "json", false, "print JSON")
	flags.StringArrayVar(&p.o.DevArgs, "dev-arg", nil,
		"one more `ARGUMENT` of pstorage dev")
	flags.StringToStringVar(&p.least, "min", nil, "`FIGURE=VALUE`: fail if the figure is lower")
	flags.StringToStringVar(&p.most, "max", nil, "`FIGURE=VALUE`: fail if the figure is higher")
	flags.BoolVar(&p.bars, "bars", false, "fail if a figure is worse than its bar in every round")
	flags.StringVar(&p.out, "out", "", "also write report-TIME.json, .txt and charts in `DIR`")
}

// addQuick adds the flags of quick: all of it is to be over in 50 s.
func (p *planFlags) addQuick(cmd *cobra.Command) {
	p.add(cmd, 0.25, 512<<20, 1<<30)
	cmd.Flags().Float64Var(&p.within, "within", 48, "`SECONDS` that all of it may take; 0: any time")
}

func (p *planFlags) run(cmd *cobra.Command) error {
	least, err := parseBounds("min", p.least)
	if err != nil {
		return err
	}
	most, err := parseBounds("max", p.most)
	if err != nil {
		return err
	}
	p.o.Each = time.Duration(p.seconds * float64(time.Second))
	p.o.Within = p.limit(cmd)
	p.o.Size, p.o.Journal = int64(p.size), int64(p.journal)
	report, err := perf.Bench(cmd.Context(), p.o)
	if report == nil {
		return cli.Fail("measure", err, "")
	}
	return p.finish(cmd, report, least, most, err)
}

// limit is what all of it may take. Who asks for sizes or rounds gets them, unless a limit is asked
// for, too.
func (p *planFlags) limit(cmd *cobra.Command) time.Duration {
	flags := cmd.Flags()
	if !flags.Changed("within") {
		for _, name := range []string{"size", "journal", "rounds", "seconds", "cs"} {
			if flags.Changed(name) {
				return 0
			}
		}
	}
	return time.Duration(p.within * float64(time.Second))
}

// finish writes a report and says how good it is. measured is what went wrong after a part of the
// figures had been measured.
func (p *planFlags) finish(cmd *cobra.Command, report *perf.Report, least, most map[string]float64,
	measured error) error {
	if err := printReport(cmd, report, p.json); err != nil {
		return err
	}
	if p.out != "" {
		if err := writeAll(p.out, report); err != nil {
			return cli.Fail("write the report to "+p.out, errors.Join(err, measured), "")
		}
	}
	lines, ok := report.Check(least, most)
	lines = append(lines, report.BarLines()...)
	if p.json {
		for _, line := range report.MissingLines() {
			fmt.Fprintln(cmd.ErrOrStderr(), "not measured: "+line)
		}
	}
	for _, line := range lines {
		fmt.Fprintln(cmd.ErrOrStderr(), line)
	}
	if measured != nil {
		return failedRows(measured)
	}
	if !ok {
		return cli.Failf("compare with what was asked for", "too low, too high or not there", "")
	}
	if p.bars && report.Rounds < 3 {
		return cli.Failf("compare with the bars", fmt.Sprintf("%d rounds tell no regression from noise",
			report.Rounds), "give it 3 rounds or more and, on a busy machine, --within 0")
	}
	if worse := report.Regressions(); p.bars && len(worse) > 0 {
		return cli.Failf("compare with the bars", "worse in every round: "+strings.Join(worse, ", "),
			"run it again on a machine that does nothing else")
	}
	return nil
}

// failedRows says that a report isn't complete.
func failedRows(err error) error {
	return cli.Fail("measure everything", err, "the other figures are in the report")
}

// finishReport prints a report, if there is one, and says what went wrong.
func finishReport(cmd *cobra.Command, r *perf.Report, asJSON bool, what string, err error) error {
	if r == nil || err != nil && len(r.Figures) == 0 {
		return cli.Fail(what, err, "")
	}
	if printed := printReport(cmd, r, asJSON); printed != nil {
		return printed
	}
	if err != nil {
		return failedRows(err)
	}
	return nil
}

// printReport prints a report as a table or as JSON.
func printReport(cmd *cobra.Command, r *perf.Report, asJSON bool) error {
	if asJSON {
		return r.WriteJSON(cmd.OutOrStdout())
	}
	return r.WriteTable(cmd.OutOrStdout())
}

// rowList are the rows of a measurement, for its help.
func rowList(names, about []string) string {
	var list strings.Builder
	for i, name := range names {
		fmt.Fprintf(&list, "  %-10s %s\n", name, about[i])
	}
	return strings.TrimRight(list.String(), "\n")
}

// writeAll writes a report in all its forms.
func writeAll(dir string, r *perf.Report) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	base := filepath.Join(dir, "report-"+r.Time.Format("20060102-150405"))
	type form struct {
		name  string
		write func(io.Writer) error
	}
	forms := []form{{base + ".json", r.WriteJSON}, {base + ".txt", r.WriteTable}}
	for name, draw := range r.Charts() {
		forms = append(forms, form{base + "-" + name + ".svg", draw})
	}
	for _, form := range forms {
		f, err := os.Create(form.name)
		if err != nil {
			return err
		}
		if err := form.write(f); err != nil {
			f.Close()
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

func newQuick() *cobra.Command {
	p := &planFlags{}
	cmd := &cobra.Command{
		Use:   "quick",
		Short: "The main figures in under a minute, beside raw fio on the same disk",
		Long: `Quick starts a cluster of its own (one metadata server, three chunk servers) in a
temporary directory, lays out a file, and measures reads and writes through the client library, a
mount (as root) and NBD, in turns with raw fio (io_uring, O_DIRECT) on a file beside it. It prints
the medians of the rounds' ratios, each with its goal. The write rows are those of journals that
aren't full; what is sustained is a row of pstorage-perf engine.

It takes at most 50 seconds, without waiting for another measurement on this machine: on a slow disk
files and journals are smaller, on a busy machine there are fewer rounds, and the report says so.
Who gives sizes, rounds or times gets those, unless --within is given, too.`,
		Example: `  pstorage-perf quick
  pstorage-perf quick --json --rounds 5
  pstorage-perf quick --min randread_q32=0.4 --max cpu_us_read=25`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.run(cmd) },
	}
	p.addQuick(cmd)
	return cmd
}

func newBench() *cobra.Command {
	p := &planFlags{}
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "All figures, with emulated disks and more yardsticks; some minutes",
		Long: `Bench measures what quick does, for longer, and more: writes and large requests through
the mount and NBD, NBD over TCP, libpstorage (after make fio-engine), a FUSE file system that passes
requests on, a TCP ping-pong, and (as root) a cluster of 4 servers with 2 emulated HDDs each, with
and without journals on SSDs.`,
		Example: `  pstorage-perf bench --out results
  pstorage-perf bench --rounds 6 --out before && ... && pstorage-perf compare before after`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			p.o.Passthrough, p.o.More = []string{self, passthroughCommand}, true
			return p.run(cmd)
		},
	}
	p.add(cmd, 2, 1<<30, 4<<30)
	cmd.Flags().BoolVar(&p.o.Emulated, "emulated", true, "the rows with emulated disks, too")
	return cmd
}

func newCompare() *cobra.Command {
	var o perf.CompareOptions
	var force bool
	cmd := &cobra.Command{
		Use:   "compare BEFORE AFTER",
		Short: "Tell a regression from noise in two sets of reports",
		Long: `Compare reads reports in JSON: BEFORE and AFTER are each a file, or a directory of
them. A figure has changed if it is improbable that both sides are samples of the same thing
(Mann-Whitney) and their medians differ by more than a little. With 5 reports or more on each side,
made in turns, a sample is the median of a report. With fewer it is a round; that takes at least 5
rounds on each side and makes changes look surer than they are, as the rounds of a report share its
cluster and its minutes.

Reports of files of another size, of measurements of another length or of other servers aren't
comparable and refused; another machine is said.

The exit status is 1 if a figure has become worse or is gone.`,
		Example: `  pstorage-perf compare before after`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return cli.Usage("compare what with what? see %s --help", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			before, err := perf.ReadReports(args[0])
			if err != nil {
				return cli.Fail("read reports", err, "")
			}
			after, err := perf.ReadReports(args[1])
			if err != nil {
				return cli.Fail("read reports", err, "")
			}
			return compare(cmd, before, after, o, force)
		},
	}
	cmd.Flags().Float64Var(&o.Alpha, "alpha", 0.01, "how improbable noise must be")
	cmd.Flags().Float64Var(&o.Least, "least", 0.05, "changes of the median below this don't count")
	cmd.Flags().BoolVar(&force, "force", false, "compare reports that aren't comparable")
	return cmd
}

func compare(cmd *cobra.Command, before, after []*perf.Report, o perf.CompareOptions,
	force bool) error {
	refuse, warn := perf.Comparable(before, after)
	if len(refuse) > 0 && !force {
		return cli.Failf("compare", "the reports differ in "+strings.Join(refuse, "; "),
			"give both the same --size, --seconds, --cs and --journal, or compare with --force")
	}
	for _, line := range append(refuse, warn...) {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: the reports differ in "+line)
	}
	changes := perf.Compare(before, after, o)
	if err := perf.WriteChanges(cmd.OutOrStdout(), changes); err != nil {
		return err
	}
	var lost []string
	for _, verdict := range []perf.Verdict{perf.Worse, perf.Gone} {
		var names []string
		for _, c := range changes {
			if c.Verdict == verdict {
				names = append(names, c.Name)
			}
		}
		if len(names) > 0 {
			lost = append(lost, fmt.Sprintf("%d %s: %s", len(names), strings.ToLower(string(verdict)),
				strings.Join(names, ", ")))
		}
	}
	if len(lost) > 0 {
		return cli.Failf("compare", strings.Join(lost, "; "), "")
	}
	return nil
}

// parseBounds reads the values of a flag.
func parseBounds(flag string, texts map[string]string) (map[string]float64, error) {
	bounds := map[string]float64{}
	for name, text := range texts {
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, cli.Usage("--%s %s=%s: not a number", flag, name, text)
		}
		bounds[name] = value
	}
	return bounds, nil
}
