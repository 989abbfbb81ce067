package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
)

// outputValue is the flag -o: table or json.
type outputValue struct{ to *string }

func (o outputValue) String() string {
	if o.to == nil {
		return "table"
	}
	return *o.to
}

func (o outputValue) Type() string { return "FORMAT" }

func (o outputValue) Set(text string) error {
	if text != "table" && text != "json" {
		return fmt.Errorf("%q isn't one of table, json", text)
	}
	*o.to = text
	return nil
}

// addOutput adds the flag -o to cmd.
func (a *app) addOutput(cmd *cobra.Command) {
	a.output = "table"
	cmd.Flags().VarP(outputValue{&a.output}, "output", "o", "print a table or json")
}

// print writes doc as JSON, or as show puts it.
func (a *app) print(out io.Writer, doc any, show func(t *table)) error {
	var text []byte
	if a.output == "json" {
		var err error
		if text, err = json.MarshalIndent(doc, "", "  "); err != nil {
			return cli.Fail("print", err, "")
		}
		text = append(text, '\n')
	} else {
		text = render(show)
	}
	_, err := out.Write(text)
	return cli.Fail("print", err, "")
}

// table lays out lines and columns.
type table struct {
	buf bytes.Buffer
	tab *tabwriter.Writer // not nil while rows are added
}

func render(show func(t *table)) []byte {
	var t table
	show(&t)
	t.flush()
	return t.buf.Bytes()
}

// line adds a line that isn't part of a table.
func (t *table) line(format string, args ...any) {
	t.flush()
	fmt.Fprintf(&t.buf, format+"\n", args...)
}

// row adds a row; rows that follow each other are aligned.
func (t *table) row(cells ...any) {
	if t.tab == nil {
		t.tab = tabwriter.NewWriter(&t.buf, 0, 8, 2, ' ', 0)
	}
	var line strings.Builder
	for i, cell := range cells {
		if i > 0 {
			line.WriteByte('\t')
		}
		fmt.Fprint(&line, clean(fmt.Sprint(cell)))
	}
	fmt.Fprintln(t.tab, line.String())
}

func (t *table) flush() {
	if t.tab == nil {
		return
	}
	t.tab.Flush()
	t.tab = nil
}

// clean keeps text that comes from other nodes from steering the terminal or breaking the table.
func clean(text string) string {
	if text == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, text)
}

// when returns a time in nanoseconds since 1970 for people.
func when(ns int64) string {
	if ns == 0 {
		return "-"
	}
	return time.Unix(0, ns).Local().Format("2006-01-02 15:04:05")
}

// size returns bytes for people.
func size(n uint64) string { return cli.Bytes(n) }
