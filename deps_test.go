package pstorage_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// module is the prefix of our own import paths.
const module = "pstorage"

// arrow says which of our packages a package may import, and why it is held to that. A pattern
// ending in "/..." means the package and all below it.
type arrow struct {
	from string
	may  []string
	why  string
}

// arrows are the arrows of ARCHITECTURE.md. The first row that matches a package counts. A row
// should almost never get longer: an import that doesn't fit is a sign that code is in the wrong
// place. Tests may import what they like.
var arrows = []arrow{
	{"uring", nil,
		"the reactor is a tool like the standard library: it knows nothing of chunks or frames"},
	{"uring/simloop", []string{"uring"},
		"the simulator stands in for the reactor, so it may know no more than the reactor does"},
	{"dataplane", nil,
		"the vocabulary is imported by everybody, so it can import nobody"},
	{"dataplane/session", []string{"uring", "dataplane"},
		"a handshake must not depend on what is said after it"},
	{"dataplane/control", []string{"dataplane", "dataplane/session"},
		"control messages are used by servers that have no ring"},
	{"dataplane/cluster", []string{"dataplane", "dataplane/session"},
		"configuration is files: no connections, no rings"},
	{"dataplane/discover", []string{"dataplane", "dataplane/cluster"},
		"finding a cluster comes before speaking to it: addresses, no handshakes"},
	{"dataplane/client", []string{"uring", "dataplane", "dataplane/session", "dataplane/control",
		"dataplane/cluster"},
		"the client knows the wire, never the inside of a server"},
	{"dataplane/fuse", []string{"dataplane", "dataplane/client", "dataplane/control", "uring"},
		"a front end reaches chunks through the client only"},
	{"dataplane/nbd", []string{"dataplane", "dataplane/client", "uring"},
		"a front end reaches chunks through the client only"},
	{"ssdcache", []string{"uring", "dataplane"},
		"the log knows blocks, not replication: it can be tested and replayed by itself"},
	{"chunk", []string{"ssdcache", "dataplane", "dataplane/session", "dataplane/control",
		"dataplane/cluster", "uring"},
		"a chunk server never reaches into the metadata server or a front end"},
	{"mds", []string{"dataplane", "dataplane/session", "dataplane/control", "dataplane/cluster"},
		"metadata is on no I/O path: no ring, no log, no chunk server inside"},
	{"cmd/...", []string{"..."},
		"mains glue everything together"},
	{"perf/emulate", nil,
		"emulated disks are a tool: tests of any package may make one"},
	{"perf/history", nil,
		"the checker judges histories, wherever they come from"},
	{"perf/netlab", nil,
		"emulated networks are a tool: tests of any package may make one"},
	{"perf/nettest", []string{"perf/history", "perf/netlab"},
		"tests of real processes: what they import beyond these, their test files do"},
	{"perf/hwflush", nil,
		"a check of disks speaks to none of the daemons"},
	{"perf/crashtest", nil,
		"tests of whole processes, and nothing else"},
	{"perf/peers", []string{"perf"},
		"other systems are measured with the harness's own jobs and reports"},
	{"perf", []string{"perf/emulate", "perf/history", "dataplane", "dataplane/client",
		"dataplane/cluster", "dataplane/control", "dataplane/session", "uring"},
		"the harness measures the system from outside, as a user of the client library"},
	{".", nil,
		"the root holds only tests of the tree"},
}

// thirdParty says which of our packages may import a foreign package (longest prefix counts).
// nil: nobody may. What isn't listed may be imported by all.
var thirdParty = []arrow{
	{"github.com/iceber/iouring-go/syscall", []string{"uring/..."},
		"one package speaks to the kernel's rings"},
	{"github.com/iceber/iouring-go", nil,
		"its own event loop mixes up files on a second RegisterFile and doesn't link on new Go"},
	{"github.com/hashicorp/raft", []string{"mds/..."},
		"consensus is the metadata server's business alone"},
	{"github.com/hashicorp/raft-wal", []string{"mds/..."}, "see raft"},
	{"github.com/hanwen/go-fuse", []string{"dataplane/fuse/...", "cmd/..."},
		"one front end speaks FUSE"},
	{"golang.org/x/net", []string{"dataplane/discover/..."},
		"one package reads messages of name services"},
	{"github.com/spf13/cobra", []string{"cmd/..."}, "flags live in mains"},
	{"github.com/rivo/tview", []string{"cmd/..."}, "screens live in mains"},
	{"flag", []string{"cmd/..."}, "flags live in mains; packages take options structs"},
	{"net/http", []string{"cmd/...", "mds/..."}, "nothing on the data path speaks HTTP"},
	{"github.com/stretchr/testify", nil, "tests compare and say what differs in plain Go"},
	{"C", []string{"cmd/libpstorage"}, "C code is for those who program in C"},
	{"github.com/ianlancetaylor/cgosymbolizer", []string{"cmd/libpstorage"},
		"only programs with C in them have C stacks"},
}

// impureCalls are what pure code doesn't use: the same input must give the same output, on a
// virtual clock too. The value says what to use instead. A name ending in "*" means all that begin
// so, unless pureNames has it.
var impureCalls = map[string]string{
	"time.Now": "Env.Now, or a time handed in", "time.Since": "Env.Now", "time.Until": "Env.Now",
	"time.Sleep": "Env.Arm", "time.After": "Env.Arm", "time.AfterFunc": "Env.Arm",
	"time.NewTimer": "Env.Arm", "time.NewTicker": "Env.Arm", "time.Tick": "Env.Arm",
	"math/rand.*": "Env.Rand, or a generator with a seed", "syscall.*": "the shell",
	"math/rand/v2.*": "Env.Rand, or a generator with a seed", "net.*": "uring.Net",
	"golang.org/x/sys/unix.*": "the shell",
}

// pureNames are harmless names of packages that impureCalls bars: generators that have a seed,
// error numbers, addresses as text, memory outside the Go heap.
var pureNames = regexp.MustCompile(`^(math/rand(/v2)?\.(New|NewPCG|NewChaCha8|NewSource|` +
	`NewZipf|Rand|PCG|ChaCha8|Source|Zipf)|syscall\.(Errno|E[A-Z0-9]+)|` +
	`net\.(SplitHostPort|JoinHostPort|ErrClosed)|` +
	`golang\.org/x/sys/unix\.(Mmap|Munmap|Madvise|(PROT|MAP|MADV)_[A-Z]+))$`)

// impureImports are what pure code doesn't import.
var impureImports = map[string]string{
	"os": "files are opened by the shell", "os/exec": "the shell", "crypto/rand": "Env.Rand",
	"sync": "pure code has one thread", "sync/atomic": "pure code has one thread",
}

// pureFiles hold protocol logic and data structures that run under the simulator, or on every
// metadata server with the same result. Patterns as in path.Match, relative to the root. A
// pattern that matches nothing yet is listed by the test, not failed.
var pureFiles = []string{
	"chunk/replica*.go",
	"chunk/settle*.go",
	"ssdcache/*.go",
	"mds/apply*.go",
	"mds/state*.go",
	"mds/place*.go",
	"mds/namespace*.go",
	"mds/dir.go", "mds/command.go", "mds/registry.go", "mds/codec.go", "mds/attrs.go",
	"mds/chunks.go", "mds/record.go",
	"dataplane/client/engine*.go", "dataplane/client/op.go", "dataplane/client/size.go",
	"dataplane/client/part.go", "dataplane/client/maps.go", "dataplane/client/dispatch.go",
	"dataplane/client/reply.go", "dataplane/client/retry.go", "dataplane/client/flush.go",
	"dataplane/client/peer.go",
	"uring/simloop/*.go",
}

// shellFiles are exceptions from pureFiles: the parts of those packages that touch the machine.
var shellFiles = map[string]string{}

// goFile is one Go file of the tree, parsed.
type goFile struct {
	path string // relative to the root, with slashes
	pkg  string // its folder: "dataplane/client", "." for the root
	test bool
	src  []byte
	ast  *ast.File
	fset *token.FileSet
}

// tree parses all Go files of the module.
func tree(t *testing.T) []goFile {
	t.Helper()
	var files []goFile
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			skip := p != "." && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") ||
				name == "testdata" || p == "run" || p == "bin")
			if skip {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		slashed := filepath.ToSlash(p)
		files = append(files, goFile{path: slashed, pkg: path.Dir(slashed),
			test: strings.HasSuffix(name, "_test.go"), src: src, ast: f, fset: fset})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// matches says whether pattern ("a/b" or "a/b/...", "..." for all) covers pkg.
func matches(pattern, pkg string) bool {
	if pattern == "..." {
		return true
	}
	if below, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == below || strings.HasPrefix(pkg, below+"/")
	}
	return pattern == pkg
}

func anyMatches(patterns []string, pkg string) bool {
	for _, p := range patterns {
		if matches(p, pkg) {
			return true
		}
	}
	return false
}

// checkArrow returns why pkg must not import imp, or "".
func checkArrow(pkg, imp string) string {
	if own, ok := strings.CutPrefix(imp, module+"/"); ok {
		for _, a := range arrows {
			if !matches(a.from, pkg) {
				continue
			}
			if anyMatches(a.may, own) {
				return ""
			}
			return a.why
		}
		return "it isn't in the table of arrows: add it to ARCHITECTURE.md and here"
	}
	best := -1
	for i, a := range thirdParty {
		if imp == a.from || strings.HasPrefix(imp, a.from+"/") {
			if best < 0 || len(a.from) > len(thirdParty[best].from) {
				best = i
			}
		}
	}
	if best >= 0 && !anyMatches(thirdParty[best].may, pkg) {
		return thirdParty[best].why
	}
	return ""
}

// TestImports holds the arrows of ARCHITECTURE.md.
func TestImports(t *testing.T) {
	seen := 0
	for _, f := range tree(t) {
		if f.test {
			continue
		}
		for _, spec := range f.ast.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatalf("%s: import %s: %v", f.path, spec.Path.Value, err)
			}
			seen++
			if why := checkArrow(f.pkg, imp); why != "" {
				t.Errorf("%s: %s must not import %s: %s",
					f.fset.Position(spec.Pos()), f.pkg, imp, why)
			}
		}
	}
	if seen == 0 {
		t.Fatal("no imports found: the test looks in the wrong place")
	}
}

// TestCheckArrow is the canary: wrong arrows are found.
func TestCheckArrow(t *testing.T) {
	for _, c := range []struct {
		pkg, imp string
		ok       bool
	}{
		{"mds", "pstorage/dataplane", true},
		{"mds", "pstorage/chunk", false},
		{"mds", "pstorage/uring", false},
		{"dataplane", "pstorage/uring", false},
		{"uring", "pstorage/dataplane", false},
		{"cmd/pstorage", "pstorage/chunk", true},
		{"newpackage", "pstorage/dataplane", false},
		{"uring", "github.com/iceber/iouring-go/syscall", true},
		{"uring", "github.com/iceber/iouring-go", false},
		{"chunk", "github.com/iceber/iouring-go/syscall", false},
		{"mds", "github.com/hashicorp/raft", true},
		{"chunk", "github.com/hashicorp/raft", false},
		{"chunk", "fmt", true},
	} {
		if got := checkArrow(c.pkg, c.imp); (got == "") != c.ok {
			t.Errorf("checkArrow(%s, %s) = %q, want ok %v", c.pkg, c.imp, got, c.ok)
		}
	}
}

// impurities returns what in f depends on more than its input, as "line: what".
func impurities(f goFile) []string {
	var found []string
	at := func(pos token.Pos, what string) {
		found = append(found, f.fset.Position(pos).String()+": "+what)
	}
	names := map[string]string{} // local name of an import -> its path
	for _, spec := range f.ast.Imports {
		imp, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		name := path.Base(strings.TrimSuffix(imp, "/v2"))
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = imp
		if instead, bad := impureImports[imp]; bad {
			at(spec.Pos(), "imports "+imp+"; instead: "+instead)
		}
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			at(n.Pos(), "starts a goroutine; instead: a callback of the loop, or the shell")
		case *ast.SelectStmt:
			at(n.Pos(), "select: the order is up to the scheduler")
		case *ast.SelectorExpr:
			id, ok := n.X.(*ast.Ident)
			if !ok {
				break
			}
			imp := names[id.Name]
			call := imp + "." + n.Sel.Name
			instead, bad := impureCalls[call]
			if !bad {
				instead, bad = impureCalls[imp+".*"]
			}
			if bad && !pureNames.MatchString(call) {
				at(n.Pos(), "uses "+call+"; instead: "+instead)
			}
		}
		return true
	})
	return found
}

// TestPure holds pure files pure: no clock, goroutine, file, socket or global randomness.
func TestPure(t *testing.T) {
	files := tree(t)
	for _, pattern := range pureFiles {
		matched := 0
		for _, f := range files {
			ok, err := path.Match(pattern, f.path)
			if err != nil {
				t.Fatalf("pattern %q: %v", pattern, err)
			}
			if !ok || f.test || shellFiles[f.path] != "" {
				continue
			}
			matched++
			for _, what := range impurities(f) {
				t.Error(what)
			}
		}
		if matched == 0 {
			t.Logf("%s: no such file yet", pattern)
		}
	}
}

// TestImpurities is the canary of TestPure.
func TestImpurities(t *testing.T) {
	const src = `package p

import (
	"os"
	"math/rand/v2"
	"syscall"
	clock "time"
)

func f() {
	go f()
	_ = clock.Now()
	_ = os.Args
	_ = clock.Second
	_ = rand.New(rand.NewPCG(1, 2))
	_ = rand.IntN(3)
	_ = syscall.EIO
	_ = syscall.Getpid()
}
`
	fset := token.NewFileSet()
	parsed, err := parser.ParseFile(fset, "p.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	got := impurities(goFile{path: "p.go", ast: parsed, fset: fset})
	if len(got) != 5 {
		t.Errorf("found %d impurities, want os, go, time.Now, rand.IntN, Getpid: %q", len(got), got)
	}
}
