package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
)

const (
	reportLog     = 8 << 20 // bytes of a log, its end
	reportJournal = 5000    // lines of the system's journal
	journalTime   = 30 * time.Second
)

type reportOptions struct {
	file string
	logs []string
}

func newReport(a *app) *cobra.Command {
	var o reportOptions
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Collect what support needs in one file, without secrets",
		Long: `Collect what support needs in one file (tar.gz): the state of the cluster, its services,
events and configuration, versions, the lists of this node, facts about its kernel, disks and
network, the journal of the services, and logs that are named. Keys and passwords are left out:
the key file isn't read into it, and what looks like a key or a password in the rest is replaced.
What can't be had is named in errors.txt; the cluster needn't be up.`,
		Example: `  pstorage report
  pstorage -c prod report -f /tmp/report.tar.gz --log /var/log/pstorage-csd.log`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return writeReport(cmd.Context(), a, o, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&o.file, "file", "f", "",
		"write it to `FILE` (default pstorage-report-HOST-TIME.tar.gz here)")
	flags.StringArrayVar(&o.logs, "log", nil, "add the end of this log `FILE` (several times)")
	a.addOutput(cmd)
	return cmd
}

// reportDoc is what report -o json prints.
type reportDoc struct {
	File    string   `json:"file"`
	Missing []string `json:"missing"` // what couldn't be had, and why
}

// report is being collected.
type report struct {
	redact *redactor
	now    time.Time
	dir    string // all members are in it
	tar    *tar.Writer
	errs   []string
}

func writeReport(ctx context.Context, a *app, o reportOptions, out io.Writer) error {
	conf, err := a.conf()
	if err != nil {
		return err
	}
	redact, err := newRedactor(cluster.EtcDir())
	if err != nil {
		return err
	}
	now := time.Now()
	host, _ := os.Hostname()
	name := fmt.Sprintf("pstorage-report-%s-%s", host, now.UTC().Format("20060102-150405"))
	if o.file == "" {
		o.file = name + ".tar.gz"
	}
	f, err := os.OpenFile(o.file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return cli.Fail("make "+o.file, cli.Plain(err), "choose another file with -f")
	}
	zip := gzip.NewWriter(f)
	r := &report{redact: redact, now: now, dir: name, tar: tar.NewWriter(zip)}
	err = r.collect(ctx, a, conf, o.logs)
	err = errors.Join(err, r.tar.Close(), zip.Close(), f.Close())
	if err != nil {
		os.Remove(o.file)
		return cli.Fail("write "+o.file, err, "")
	}
	doc := reportDoc{o.file, append([]string{}, r.errs...)}
	return a.print(out, doc, func(t *table) {
		t.line("%s", o.file)
		for _, e := range r.errs {
			t.line("not in it: %s", clean(e))
		}
	})
}

// collect adds everything. An error is one of writing; what can't be had is noted.
func (r *report) collect(ctx context.Context, a *app, conf *cluster.Conf, logs []string) error {
	version, _ := json.MarshalIndent(currentVersion(), "", "  ")
	err := r.add("version.json", version)
	err = errors.Join(err, r.clusterDocs(ctx, a), r.node(conf), r.journal(ctx))
	for i, path := range logs {
		text, e := tail(path, reportLog)
		if e != nil {
			r.missing(path, e)
			continue
		}
		err = errors.Join(err, r.add(fmt.Sprintf("logs/%d-%s", i+1, filepath.Base(path)), text))
	}
	if len(r.errs) > 0 {
		err = errors.Join(err, r.add("errors.txt", []byte(strings.Join(r.errs, "\n")+"\n")))
	}
	return err
}

func (r *report) missing(what string, err error) {
	line := cli.OneLine(err)
	if !strings.Contains(line, what) {
		line = what + ": " + line
	}
	r.errs = append(r.errs, string(r.redact.clean([]byte(line))))
}

// add adds a member, after everything secret was taken out of it.
func (r *report) add(name string, text []byte) error {
	text = r.redact.clean(text)
	err := r.tar.WriteHeader(&tar.Header{Name: r.dir + "/" + name, Mode: 0o644,
		Size: int64(len(text)), ModTime: r.now, Format: tar.FormatPAX})
	if err == nil {
		_, err = r.tar.Write(text)
	}
	return err
}

// clusterDocs adds what the metadata servers say.
func (r *report) clusterDocs(ctx context.Context, a *app) error {
	conn, err := a.admin(ctx)
	if err != nil {
		r.missing("the cluster's state", err)
		return nil
	}
	defer conn.close()
	for _, d := range []struct {
		file, command string
		args          any
	}{
		{"stat.json", control.AdminStat, nil},
		{"services.json", control.AdminListServices, nil},
		{"events.json", control.AdminEvents, control.EventsArgs{Limit: eventPage, Last: true}},
		{"config.json", control.AdminGetConfig, nil},
	} {
		var doc json.RawMessage
		if err := conn.get(ctx, "ask for "+d.command, d.command, d.args, &doc); err != nil {
			r.missing("the cluster's state ("+d.file+" and what follows it)", err)
			return nil // the others would wait in vain as long
		}
		var text bytes.Buffer
		if d.command == control.AdminGetConfig {
			doc = hideUserConfig(doc)
		}
		if json.Indent(&text, doc, "", "  ") != nil {
			text.Reset()
			text.Write(doc)
		}
		if err := r.add(d.file, text.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// hideUserConfig takes the values of user.* out: nobody knows what people keep there.
func hideUserConfig(doc []byte) []byte {
	var config control.ConfigDoc
	if json.Unmarshal(doc, &config) != nil {
		return []byte("{}")
	}
	for i := range config.Entries {
		if strings.HasPrefix(config.Entries[i].Key, "user.") {
			config.Entries[i].Value = removed
		}
	}
	text, _ := json.Marshal(config)
	return text
}

// node adds what this machine says of itself.
func (r *report) node(conf *cluster.Conf) error {
	var facts bytes.Buffer
	fmt.Fprintf(&facts, "time %s\nplatform %s/%s, %d CPUs\n", r.now.UTC().Format(time.RFC3339),
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	for _, pattern := range []string{"/proc/version", "/proc/cmdline", "/proc/meminfo",
		"/proc/loadavg", "/proc/mounts", "/proc/diskstats", "/proc/net/dev", "/proc/pressure/*",
		"/proc/sys/kernel/io_uring_disabled", "/proc/sys/vm/overcommit_memory",
		"/proc/sys/net/ipv4/tcp_congestion_control", "/sys/block/*/queue/scheduler",
		"/sys/block/*/queue/write_cache", "/sys/block/*/queue/rotational",
		"/sys/block/*/queue/logical_block_size", "/etc/os-release"} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			if text, err := os.ReadFile(path); err == nil {
				fmt.Fprintf(&facts, "\n== %s\n%s", path, text)
			}
		}
	}
	err := r.add("node.txt", facts.Bytes())
	for _, list := range []string{"bs.list", "mds.list", "cs.list"} {
		text, e := os.ReadFile(filepath.Join(conf.Path(), list))
		if errors.Is(e, os.ErrNotExist) {
			continue
		} else if e != nil {
			r.missing(list, e)
			continue
		}
		err = errors.Join(err, r.add(list, text))
	}
	return err
}

// journal adds what the services of systemd said, where there is one.
func (r *report) journal(ctx context.Context) error {
	if _, err := exec.LookPath("journalctl"); err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, journalTime)
	defer cancel()
	text, err := exec.CommandContext(ctx, "journalctl", "--no-pager", "-q", "-o", "short-iso-precise",
		"-n", fmt.Sprint(reportJournal), "-u", "pstorage-*").Output()
	if err != nil {
		r.missing("the journal", err)
		return nil
	}
	return r.add("journal.txt", text)
}

// tail returns the last n bytes of a file.
func tail(path string, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s isn't a regular file", path)
	}
	text := make([]byte, min(n, info.Size()))
	got, err := f.ReadAt(text, info.Size()-int64(len(text)))
	if err == io.EOF {
		err = nil
	}
	return text[:got], err
}

const removed = "[removed]"

// redactor takes secrets out of text: this node's keys in every form in which they might have been
// written, and what is called a password or the like.
type redactor struct{ secrets [][]byte }

// What names a secret, and the secret behind it: in quotes, bare, a bearer token, a key.
var looksSecret = []*regexp.Regexp{
	regexp.MustCompile(`(?i)([a-z_-]*(?:passw(?:or)?d|secret)"?\s*[=:]\s*")[^"\n]*`),
	regexp.MustCompile(`(?i)([a-z_-]*(?:passw(?:or)?d|secret)"?\s*[=:]\s*)[^\s,;"]+`),
	regexp.MustCompile(`(?i)(bearer )\S+`),
	regexp.MustCompile(`(?i)(\bkey"?[=: ]\s*"?)[0-9a-f]{32,}`),
}

func newRedactor(etc string) (*redactor, error) {
	r := &redactor{}
	names, err := cluster.List(etc)
	if err != nil {
		return nil, cli.Fail("", err, "")
	}
	for _, name := range names {
		conf, err := cluster.At(etc, name)
		if err != nil {
			return nil, cli.Fail("", err, "")
		}
		key, err := conf.LoadKey()
		if err != nil {
			return nil, cli.Fail("leave the keys out of the report", err,
				"without the key it can't be looked for; mend the key file, or move it away")
		}
		if len(key.Keys.Cert) > 0 {
			r.add(key.Keys.Private[:])
		}
		for i := range key.Keys.Generations {
			r.add(key.Keys.Generations[i].Key[:])
		}
	}
	return r, nil
}

// add has a secret left out, however it is written.
func (r *redactor) add(raw []byte) {
	text := hex.EncodeToString(raw)
	r.secrets = append(r.secrets, raw, []byte(text), []byte(strings.ToUpper(text)),
		[]byte(base64.StdEncoding.EncodeToString(raw)),
		[]byte(base64.RawURLEncoding.EncodeToString(raw)))
}

func (r *redactor) clean(text []byte) []byte {
	for _, secret := range r.secrets {
		text = bytes.ReplaceAll(text, secret, []byte(removed))
	}
	for _, form := range looksSecret {
		text = form.ReplaceAll(text, []byte("${1}"+removed))
	}
	return text
}
