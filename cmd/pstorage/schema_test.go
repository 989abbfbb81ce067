package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/spf13/cobra"

	"pstorage/dataplane/control"
)

var updateSchemas = flag.Bool("update-schemas", false, "write the schemas anew")

const schemaDir = "../packaging/schema"

// documents are what each command prints with -o json.
var documents = map[string]any{
	"adopt-cs": control.AdoptCSDoc{}, "auth-node": joinedDoc{},
	"list-clients": control.ClientsDoc{}, "configure-cs": csJournalDoc{}, "discover": discoverDoc{},
	"file-info": control.FileInfoDoc{},
	"get-attr":  control.AttrDoc{}, "get-config": control.ConfigDoc{},
	"get-event":        control.EventsDoc{},
	"get-event-follow": control.EventDoc{}, "list-nodes": nodesDoc{},
	"list-keys": control.KeysDoc{}, "revoke-node": control.KeysDoc{}, "rotate-keys": control.KeysDoc{},
	"list-services": control.ServicesDoc{}, "make-cs": madeDoc{}, "make-mds": madeDoc{},
	"mount": mountsDoc{}, "report": reportDoc{}, "revoke": control.RevokeDoc{},
	"rm-cs": control.RmCSDoc{}, "rm-mds": control.RemoveMDSDoc{}, "scrub-start": control.ScrubDoc{},
	"scrub-status": scrubStatusDoc{}, "set-attr": control.AttrDoc{}, "set-config": control.ConfigDoc{},
	"stat": control.StatDoc{}, "top": topDoc{}, "umount": mountsDoc{}, "version": versionDoc{},
}

// wordsOf are the values that a field, named TYPE.json_name, may have.
var wordsOf = map[string][]string{
	"StatDoc.health":           {"healthy", "degraded", "critical"},
	"EventDoc.severity":        {"info", "warning", "fault"},
	"AttrDoc.type":             {"file", "directory", "symlink"},
	"FileInfoDoc.type":         {"file", "directory", "symlink"},
	"PolicyDoc.failure_domain": {"disk", "host", "rack", "row", "room"},
	"PolicyDoc.write_ack":      {"disk", "memory"},
	"scrubCSDoc.state":         {"unknown", "idle", "scheduled", "asked"},
	"nodeDoc.status":           {"up", "partly up", "down"},
	"CSDoc.status": {control.CSActive, control.CSInactive, control.CSOffline, control.CSIll,
		control.CSReleasing, control.CSFailed, control.CSDropped, control.CSRefused},
}

// schemaOf describes how encoding/json writes a type: every field that isn't left out when empty is
// required, and there are no others.
func schemaOf(t reflect.Type) map[string]any {
	switch t.Kind() {
	case reflect.Pointer:
		return schemaOf(t.Elem())
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Float32, reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.Slice:
		return map[string]any{"type": "array", "items": schemaOf(t.Elem())}
	case reflect.Struct:
		return structSchema(t)
	}
	if strings.HasPrefix(t.Kind().String(), "uint") {
		return map[string]any{"type": "integer", "minimum": 0}
	}
	return map[string]any{"type": "integer"}
}

func structSchema(t reflect.Type) map[string]any {
	properties, required := map[string]any{}, []string{}
	for _, f := range reflect.VisibleFields(t) {
		if f.Anonymous || !f.IsExported() {
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			name = f.Name
		}
		schema := schemaOf(f.Type)
		if words := wordsOf[t.Name()+"."+name]; words != nil {
			schema["enum"] = words
		}
		properties[name] = schema
		if !strings.Contains(options, "omitempty") {
			required = append(required, name)
		}
	}
	return map[string]any{"type": "object", "properties": properties, "required": required,
		"additionalProperties": false}
}

// TestSchemas: the schemas that are checked in, and installed with the program, are those of what
// is printed. A change of a document is a change of a schema, seen in a review.
// go test ./cmd/pstorage -run TestSchemas -update-schemas writes them.
func TestSchemas(t *testing.T) {
	for name, doc := range documents {
		schema := schemaOf(reflect.TypeOf(doc))
		schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
		schema["title"] = "pstorage " + strings.ReplaceAll(name, "-follow", " --follow") + " -o json"
		want, err := json.MarshalIndent(schema, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, '\n')
		path := filepath.Join(schemaDir, name+".json")
		if *updateSchemas {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		have, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s isn't the schema of what is printed (%v); if the change is meant, write it "+
				"with -update-schemas", path, err)
		}
	}
	files, _ := filepath.Glob(filepath.Join(schemaDir, "*.json"))
	if len(files) != len(documents) {
		t.Errorf("%d schemas for %d documents", len(files), len(documents))
	}
}

// TestEveryCommand: each has an example and, unless it prints no document, -o with a schema.
func TestEveryCommand(t *testing.T) {
	noDocument := []string{"completion", "dev", "export nbd"}
	seen := 0
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		path := strings.TrimPrefix(cmd.CommandPath(), "pstorage ")
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
		if cmd.Hidden || cmd.Name() == "help" || path == "pstorage" {
			return
		}
		seen++
		if cmd.Example == "" || cmd.Short == "" {
			t.Errorf("%s: no example in its help", path)
		}
		if cmd.HasSubCommands() || slices.Contains(noDocument, path) ||
			strings.HasPrefix(path, "hwflush-check") {
			return
		}
		name := strings.ReplaceAll(path, " ", "-")
		if cmd.Flags().Lookup("output") == nil || documents[name] == nil {
			t.Errorf("%s: no -o, or no schema", path)
		}
	}
	visit(newRoot())
	if seen < 25 {
		t.Errorf("only %d commands seen", seen)
	}
}

// validator compiles a schema that is checked in.
func validator(t *testing.T, name string) *jsonschema.Schema {
	t.Helper()
	s, err := jsonschema.NewCompiler().Compile(filepath.Join(schemaDir, name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fits says whether text is a document of the schema.
func fits(t *testing.T, name, text string) {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Errorf("%s: not JSON: %v: %q", name, err, text)
		return
	}
	if err := validator(t, name).Validate(doc); err != nil {
		t.Errorf("%s: %v\n%s", name, err, text)
	}
}

// TestSchemaCanary: what doesn't fit is found.
func TestSchemaCanary(t *testing.T) {
	s := validator(t, "version")
	for _, text := range []string{`{"version":"1","revision":"2","protocol":1,"go":"x"}`,
		`{"version":"1","revision":"2","protocol":"1","go":"x"}`, `{"version":"1"}`,
		`{"version":"1","revision":"2","protocol":1,"go":"x","more":1}`} {
		doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		good := strings.HasSuffix(text, `1,"go":"x"}`)
		if err := s.Validate(doc); (err == nil) != good {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestDocuments runs every command of a cluster with -o json and holds what it prints against its
// schema.
func TestDocuments(t *testing.T) {
	n := newNode(t)
	addr := freePort(t)
	fits(t, "make-mds", n.ok(testPassword, "-c", "c1", "make-mds", "-I", "-a", addr, "-r",
		n.path("mds1"), "-P", "-o", "json"))
	mdsd := n.start("pstorage-mdsd", "-r", n.path("mds1"))
	mdsd.waitFor("mds ready on")
	fits(t, "auth-node", n.ok(testPassword, "-c", "c1", "auth-node", "-P", "-o", "json"))
	fits(t, "stat", n.ok("", "stat", "-o", "json")) // of an empty cluster
	for _, name := range []string{"cs1", "cs2"} {
		fits(t, "make-cs", n.ok("", "-c", "c1", "make-cs", "-r", n.path(name), "-a", freePort(t),
			"-s", "64M", "--capacity", "1G", "-o", "json"))
	}
	csd := n.start("pstorage-csd")
	csd.waitFor("cs 1 ready on")
	csd.waitFor("cs 2 ready on")
	eventually(t, "two chunk servers are active", func() bool { return n.active() == 2 })
	for _, line := range []string{"configure-cs -r " + n.path("cs1"), "file-info /", "get-attr /",
		"set-attr / replicas=2:1", "set-config user.team=storage", "get-config", "get-event",
		"list-nodes", "list-clients", "list-services", "list-keys", "stat", "top", "mount",
		"version", "scrub start", "scrub status", "rm-cs 2", "rm-cs 2 --cancel",
		"report -f " + n.path("report.tar.gz")} {
		args := append(strings.Fields(line), "-o", "json")
		name := args[0]
		if name == "scrub" {
			name += "-" + args[1]
		}
		fits(t, name, n.ok("", args...))
	}
	follower := n.start("pstorage", "get-event", "--follow", "-o", "json")
	fits(t, "get-event-follow", follower.waitFor("message"))
	n.mountDocuments(t)
	fits(t, "make-mds", n.ok("", "-c", "c1", "make-mds", "-a", freePort(t), "-r", n.path("mds2"),
		"-o", "json"))
	fits(t, "rm-mds", n.ok("", "rm-mds", "2", "-o", "json"))
	csd.stop()
}

// mountDocuments is about the commands that need a mount.
func (n *node) mountDocuments(t *testing.T) {
	if why := cannotMount(); why != "" {
		t.Logf("mount, umount and revoke of a file aren't looked at: %s", why)
		return
	}
	at := n.path("mnt")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	fits(t, "mount", n.ok("", "mount", at, "-o", "json"))
	defer n.run("", "pstorage", "umount", "--lazy", at)
	file, err := os.Create(filepath.Join(at, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"file-info", "get-attr", "revoke"} {
		fits(t, command, n.ok("", command, "/disk", "-o", "json"))
	}
	n.says(1, "--lazy", "umount", at)
	if err := file.Close(); err != nil {
		t.Log(err) // the right to write was revoked
	}
	fits(t, "umount", n.ok("", "umount", at, "-o", "json"))
	n.says(1, "no pstorage cluster is mounted", "umount", at)
}
