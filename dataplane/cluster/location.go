package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"pstorage/dataplane"
)

// locationFile says where a node stands, for failure domains; all its chunk servers have it that
// weren't made with a location of their own.
const locationFile = "location"

var goodLocation = regexp.MustCompile(`^[A-Za-z0-9._-]{1,63}(/[A-Za-z0-9._-]{1,63}){0,2}$`)

// Location returns where this node stands, "ROOM/ROW/RACK", of which the end may be missing: the
// only line of the file "location" in the configuration directory that isn't a comment. Without
// the file it is "".
func Location(etc string) (string, error) {
	path := filepath.Join(etc, locationFile)
	op := "read " + path
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", dataplane.E(op, dataplane.IOError, err)
	}
	location := ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if location != "" || !goodLocation.MatchString(line) {
			return "", dataplane.E(op, dataplane.Invalid, fmt.Errorf("%.80q: one line ROOM/ROW/RACK is "+
				"wanted, names of letters, digits, ., _ and -", line))
		}
		location = line
	}
	return location, nil
}
