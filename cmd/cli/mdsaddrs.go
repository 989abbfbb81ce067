package cli

import (
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/discover"
)

// MDSAddrs returns what connections to the metadata servers of a cluster are made with: where they
// are, asked again before each attempt.
func MDSAddrs(conf *cluster.Conf) func() []string {
	finder := &discover.Finder{Conf: conf}
	return finder.Addrs()
}
