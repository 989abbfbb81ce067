package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane/control"
)

func newFileInfo(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "file-info PATH",
		Short: "Show a file's attributes, and where its chunks are",
		Long: `Show a file's attributes, and where its chunks are. PATH is the path inside the
cluster.`,
		Example: `  pstorage file-info /images/web1.img`,
		Args:    onePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := show(cmd, a, "file-info "+args[0], control.AdminFileInfo,
				control.PathArgs{Path: args[0]}, showFileInfo)
			return insideAdvice(err, args[0])
		},
	}
	a.addOutput(cmd)
	return cmd
}

func newGetAttr(a *app) *cobra.Command {
	var where attrPath
	cmd := &cobra.Command{
		Use:   "get-attr PATH",
		Short: "Show how a file's chunks are kept: copies, failure domain, tier; usage of a directory",
		Long: `Show how a file's chunks are kept: copies, failure domain, tier. Of a directory
it shows, too, what all below it takes.` + attrPathHelp,
		Example: `  pstorage get-attr /images`,
		Args:    onePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := where.find(a, args[0])
			if err != nil {
				return err
			}
			return show(cmd, a, "get-attr "+path, control.AdminGetAttr, control.PathArgs{Path: path},
				showAttr)
		},
	}
	where.add(cmd)
	a.addOutput(cmd)
	return cmd
}

func newSetAttr(a *app) *cobra.Command {
	var where attrPath
	recursive := false
	cmd := &cobra.Command{
		Use:   "set-attr PATH NAME=VALUE...",
		Short: "Change how a file's chunks are kept",
		Long: `Change how a file's chunks are kept. A directory hands its attributes to what is created
in it from then on; -R changes what is below it, too. Chunks that exist stay as they are. The
attributes:

  replicas=N[:M]         N copies; writes wait when fewer than M are left (default 3:2)
  failure-domain=LEVEL   no two copies in one disk, host, rack, row or room
  tier=0..3              storage tier
  write-ack=disk|memory  when a write is acknowledged: on stable storage of all copies, or in
                         their memory (stable after a flush)` + attrPathHelp,
		Example: `  pstorage set-attr /images replicas=3:2 failure-domain=host
  pstorage set-attr -R /images tier=1
  pstorage set-attr /scratch replicas=1:1 write-ack=memory`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return cli.Usage("a path and at least one NAME=VALUE are needed; see %s --help",
					cmd.CommandPath())
			}
			return onePath(cmd, args[:1])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := where.find(a, args[0])
			if err != nil {
				return err
			}
			change, err := parseAttrs(path, args[1:])
			if err != nil {
				return err
			}
			if change.Recursive = recursive; recursive {
				return setBelow(cmd, a, change)
			}
			return show(cmd, a, "set-attr "+path, control.AdminSetAttr, change, showAttr)
		},
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "R", false, "of everything below a directory, too")
	where.add(cmd)
	a.addOutput(cmd)
	return cmd
}

// setBelow changes the attributes of a directory and of everything below it.
func setBelow(cmd *cobra.Command, a *app, change control.SetAttrArgs) error {
	conn, err := a.admin(cmd.Context())
	if err != nil {
		return err
	}
	defer conn.close()
	line := newWaitLine(cmd.ErrOrStderr(), a.output == "json")
	var doc control.AttrDoc
	err = conn.getLong(cmd.Context(), &line, "set-attr -R "+change.Path, control.AdminSetAttr, change,
		&doc)
	if err != nil {
		return err
	}
	return a.print(cmd.OutOrStdout(), doc, func(t *table) { showAttr(t, doc) })
}

// onePath is for commands about one path in the cluster.
func onePath(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return cli.Usage("one path is needed; see %s --help", cmd.CommandPath())
	}
	if !strings.HasPrefix(args[0], "/") {
		return cli.Usage("%q isn't a path in the cluster: it must begin with /", args[0])
	}
	return nil
}

// parseAttrs turns NAME=VALUE arguments into a change.
func parseAttrs(path string, pairs []string) (control.SetAttrArgs, error) {
	change := control.SetAttrArgs{Path: path}
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || value == "" {
			return change, cli.Usage("%q isn't NAME=VALUE", pair)
		}
		var err error
		switch name {
		case "replicas":
			err = parseReplicas(&change, value)
		case "failure-domain":
			change.FailureDomain, err = oneOf(value, "disk", "host", "rack", "row", "room")
		case "tier":
			change.Tier, err = number(value, 0, 3)
		case "write-ack":
			change.WriteAck, err = oneOf(value, "disk", "memory")
		default:
			err = fmt.Errorf("no such attribute; there are replicas, failure-domain, tier, write-ack")
		}
		if err != nil {
			return change, cli.Usage("%s: %v", pair, err)
		}
	}
	return change, nil
}

// parseReplicas reads N or N:M. M alone follows N: one less, but at least 1.
func parseReplicas(change *control.SetAttrArgs, value string) error {
	normal, minimum, both := strings.Cut(value, ":")
	var err error
	if change.Replicas, err = number(normal, 1, 8); err != nil {
		return err
	}
	if !both {
		m := max(1, *change.Replicas-1)
		change.Minimum = &m
		return nil
	}
	change.Minimum, err = number(minimum, 1, *change.Replicas)
	return err
}

func number(text string, low, high int) (*int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		return nil, fmt.Errorf("%q isn't a number from %d to %d", text, low, high)
	}
	return &n, nil
}

func oneOf(text string, allowed ...string) (*string, error) {
	for _, word := range allowed {
		if text == word {
			return &text, nil
		}
	}
	return nil, fmt.Errorf("%q isn't one of %s", text, strings.Join(allowed, ", "))
}

func showAttr(t *table, doc control.AttrDoc) {
	t.row("path", doc.Path)
	t.row("type", doc.Type)
	t.row("size", fmt.Sprintf("%d (%s)", doc.Size, size(doc.Size)))
	t.row("chunks", doc.Chunks)
	t.row("replicas", fmt.Sprintf("%d:%d", doc.Policy.Replicas, doc.Policy.Minimum))
	t.row("failure-domain", doc.Policy.FailureDomain)
	t.row("tier", doc.Policy.Tier)
	t.row("write-ack", doc.Policy.WriteAck)
	if u := doc.Usage; u != nil {
		t.row("below it", fmt.Sprintf("%d files, %d directories, %s in %d chunks", u.Files, u.Dirs,
			size(u.Allocated), u.Chunks))
	}
}

func showFileInfo(t *table, doc control.FileInfoDoc) {
	showAttr(t, doc.AttrDoc)
	if w := doc.Writer; w != nil { // also of a file without chunks: it is what revoke takes
		t.line("writer: client %x on %s (%s)", w.Client, clean(w.Host), clean(w.Mount))
	}
	if len(doc.List) == 0 {
		return
	}
	t.line("")
	t.row("INDEX", "CHUNK", "EPOCH", "CHUNK SERVERS (first: head; -: not alive)")
	for _, c := range doc.List {
		t.row(c.Index, c.Chunk, c.Epoch, memberLine(c))
	}
	if uint64(len(doc.List)) < doc.Chunks {
		t.line("... and %d more", doc.Chunks-uint64(len(doc.List)))
	}
}

func memberLine(c control.ChunkDoc) string {
	var words []string
	for i, id := range c.Members {
		word := fmt.Sprint(id)
		if i < len(c.Live) && !c.Live[i] {
			word += "-"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}
