package pstorage_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"strings"
	"testing"
	"unicode/utf8"
)

// Bounds of the tree. A tab counts as one column.
const (
	maxColumns   = 100
	maxFileLines = 800 // aim for 600
	tabColumns   = 1
)

// leftovers are words that must not be left in a finished file.
var leftovers = []string{"TO" + "DO", "FIX" + "ME"}

// untidy returns what is wrong with the layout of f.
func untidy(f goFile) []string {
	var found []string
	formatted, err := format.Source(f.src)
	if err != nil {
		return append(found, fmt.Sprintf("%s: %v", f.path, err))
	}
	if !bytes.Equal(formatted, f.src) {
		found = append(found, f.path+": not formatted: run make fmt")
	}
	lines := strings.Split(string(f.src), "\n")
	if len(lines)-1 > maxFileLines {
		found = append(found, fmt.Sprintf("%s: %d lines, more than %d: split it by flow",
			f.path, len(lines)-1, maxFileLines))
	}
	for i, line := range lines {
		columns := utf8.RuneCountInString(line) + (tabColumns-1)*strings.Count(line, "\t")
		if columns > maxColumns {
			found = append(found, fmt.Sprintf("%s:%d: %d columns, more than %d",
				f.path, i+1, columns, maxColumns))
		}
		for _, word := range leftovers {
			if strings.Contains(line, word) {
				found = append(found, fmt.Sprintf("%s:%d: left over: %s", f.path, i+1, word))
			}
		}
	}
	return found
}

// TestTidy holds formatting, the length of lines and files, and that nothing was left to do.
func TestTidy(t *testing.T) {
	for _, f := range tree(t) {
		for _, what := range untidy(f) {
			t.Error(what)
		}
	}
}

// TestUntidy is the canary of TestTidy.
func TestUntidy(t *testing.T) {
	long := "package p\n\n// " + strings.Repeat("x", maxColumns) + "\n"
	for name, c := range map[string]struct {
		src  string
		want int
	}{
		"tidy":        {"package p\n\nvar a = 1\n", 0},
		"unformatted": {"package p\nvar  a = 1\n", 1},
		"long line":   {long, 1},
		"left over":   {"package p\n\n// TO" + "DO: more\n", 1},
		"long file":   {"package p\n" + strings.Repeat("\n// a\n", maxFileLines/2), 1},
	} {
		got := untidy(goFile{path: "p.go", src: []byte(c.src)})
		if len(got) != c.want {
			t.Errorf("%s: found %q, want %d", name, got, c.want)
		}
	}
}

// TestPackageComments: every package says what it is, once or more.
func TestPackageComments(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range tree(t) {
		if f.test {
			continue
		}
		if _, ok := documented[f.pkg]; !ok {
			documented[f.pkg] = false
		}
		if f.ast.Doc != nil && len(f.ast.Doc.List) > 0 {
			documented[f.pkg] = true
		}
	}
	for pkg, ok := range documented {
		if !ok {
			t.Errorf("package %s has no package comment", pkg)
		}
	}
}

// exportedUndocumented returns the exported functions and types of f without a comment.
func exportedUndocumented(f goFile) []string {
	var names []string
	for _, decl := range f.ast.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Doc == nil && d.Recv == nil && d.Name.IsExported() {
				names = append(names, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				s, ok := spec.(*ast.TypeSpec)
				if ok && s.Name.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
					names = append(names, s.Name.Name)
				}
			}
		}
	}
	return names
}

// TestExportedDocumented: exported functions and types have a comment.
func TestExportedDocumented(t *testing.T) {
	for _, f := range tree(t) {
		if f.test || f.ast.Name.Name == "main" {
			continue
		}
		for _, name := range exportedUndocumented(f) {
			t.Errorf("%s: %s is exported and has no comment", f.path, name)
		}
	}
}
