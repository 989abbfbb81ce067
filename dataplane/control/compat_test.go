package control

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestEarlierVersions reads the messages that each version sent, kept in testdata/vN: a line has a
// message's name, its bytes, and what they mean in JSON. PSTORAGE_RECORD=vN makes the file of this
// version, the highest number. It is made anew when messages or fields were added, which the test
// notices, until the version is released; then never again.
func TestEarlierVersions(t *testing.T) {
	types := map[string]reflect.Type{}
	for _, typ := range messageTypes() {
		types[typ.Name()] = typ
	}
	if v := os.Getenv("PSTORAGE_RECORD"); v != "" {
		record(t, filepath.Join("testdata", v))
	}
	files, err := filepath.Glob("testdata/v*/messages.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("nothing is recorded: ", err)
	}
	newest := slices.MaxFunc(files, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	})
	recorded := map[string]bool{}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(bytes.NewReader(b))
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			name, rest, _ := strings.Cut(lines.Text(), " ")
			text, meaning, _ := strings.Cut(rest, " ")
			typ := types[name]
			if typ == nil {
				t.Errorf("%s: message %s isn't understood any more", path, name)
				continue
			}
			p, err := hex.DecodeString(text)
			got, want := reflect.New(typ), reflect.New(typ)
			if err == nil {
				err = json.Unmarshal([]byte(meaning), want.Interface())
			}
			if err == nil {
				err = Unmarshal(p, got.Interface())
			}
			if err != nil || !reflect.DeepEqual(got.Interface(), want.Interface()) {
				t.Errorf("%s: %s is read as %+v, means %s: %v", path, name, got.Elem(), meaning, err)
			}
			if path == newest {
				recorded[name] = bytes.Equal(Marshal(got.Interface()), p)
			}
		}
	}
	for name := range types {
		if !recorded[name] {
			t.Errorf("%s has no %s as it is now: make it anew by PSTORAGE_RECORD", newest, name)
		}
	}
}

// plain makes all strings such that JSON keeps them.
func plain(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(hex.EncodeToString([]byte(v.String())))
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			plain(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			plain(v.Field(i))
		}
	}
}

// record writes the file of this version.
func record(t *testing.T, dir string) {
	var out bytes.Buffer
	for _, typ := range messageTypes() {
		m := reflect.New(typ)
		fill(rand.New(rand.NewPCG(1, 3)), m.Elem())
		plain(m.Elem())
		meaning, err := json.Marshal(m.Interface())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s %x %s\n", typ.Name(), Marshal(m.Interface()), meaning)
	}
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "messages.txt"), out.Bytes(), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
