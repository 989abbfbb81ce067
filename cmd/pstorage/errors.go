package main

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"pstorage/dataplane"
)

// chooseAdvice says what to do when no cluster could be chosen.
func chooseAdvice(err error) string {
	if dataplane.KindOf(err) == dataplane.NotFound {
		return "make a cluster with make-mds -I, or join one with auth-node"
	}
	return "name one with -c"
}

const addrInUseAdvice = "choose another port with -a ip:port, or stop what uses it"

// advice says what a person can do about err, for any command; empty if nothing helpful is known.
func advice(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return "run it as root"
	case errors.Is(err, syscall.EADDRINUSE):
		return addrInUseAdvice
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "give an address of this machine with -a"
	case errors.Is(err, syscall.ENOSPC):
		return "make room, or choose another directory with -r"
	}
	switch dataplane.KindOf(err) {
	case dataplane.Unreachable, dataplane.TimedOut:
		return "check that pstorage-mdsd runs and that bs.list has its address"
	case dataplane.Denied:
		return "check the node's key, or get a new one with auth-node"
	case dataplane.WrongCluster:
		return "check -c and the addresses in bs.list"
	case dataplane.NotLeader:
		return "try again in a few seconds"
	case dataplane.NotFound:
		return "check the name"
	}
	return ""
}

// rootCause returns the innermost error in err's chain.
func rootCause(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
