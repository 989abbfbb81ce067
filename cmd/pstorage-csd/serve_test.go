package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pstorage/chunk"
	"pstorage/cmd/cli"
	"pstorage/dataplane"
)

// What is told of a directory that isn't served says each thing once, and names a chunk server only
// if it is one of this cluster.
func TestTellRefusal(t *testing.T) {
	dir, ours := t.TempDir(), dataplane.ClusterID{1}
	if err := chunk.Format(dir, chunk.FormatOptions{Cluster: ours, ClusterName: "a",
		Addr: "127.0.0.1", LogSize: 4 << 20, Capacity: dataplane.ChunkSize}); err != nil {
		t.Fatal(err)
	}
	id, err := chunk.ReadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	id.CS = 7 // as if it had registered
	body, err := json.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	body = append(body, '\n')
	body = fmt.Appendf(body, "crc32c %08x\n", dataplane.CRC(body))
	if err := os.WriteFile(filepath.Join(dir, "identity"), body, 0o600); err != nil {
		t.Fatal(err)
	}
	why := dataplane.E("serve chunk server "+dir, dataplane.Invalid,
		dataplane.E("open the journal", dataplane.Invalid, errors.New("it is older")))
	err = refusal(dir, why)
	if cli.Status(err) != cli.ExitRefuse || dataplane.KindOf(err) != dataplane.Invalid {
		t.Errorf("status %d, kind %v", cli.Status(err), dataplane.KindOf(err))
	}
	for of, want := range map[dataplane.ClusterID]string{
		ours: "refuse 7 ", {2}: "refuse 0 ",
	} {
		var out strings.Builder
		tellRefusal(&out, dir, of, err)
		want += "serve chunk server " + dir + ": open the journal: it is older\n"
		if out.String() != want {
			t.Errorf("told %q, want %q", out.String(), want)
		}
	}
}
