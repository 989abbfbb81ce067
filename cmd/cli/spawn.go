package cli

import (
	"os/exec"
	"runtime"
	"syscall"
)

// Spawner starts processes that get a signal when this process ends. The kernel sends it when the
// *thread* that started the child ends, and Go ends threads; so a Spawner has one thread that
// lives as long as the process. It may be used by several goroutines.
type Spawner struct {
	requests chan spawnRequest
}

type spawnRequest struct {
	cmd  *exec.Cmd
	done chan error
}

// NewSpawner returns a spawner, and starts its thread.
func NewSpawner() *Spawner {
	s := &Spawner{requests: make(chan spawnRequest)}
	go func() {
		runtime.LockOSThread()
		for request := range s.requests {
			request.done <- request.cmd.Start()
		}
	}()
	return s
}

// Start starts cmd, which gets the signal when this process ends.
func (s *Spawner) Start(cmd *exec.Cmd, atEnd syscall.Signal) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = atEnd
	request := spawnRequest{cmd, make(chan error, 1)}
	s.requests <- request
	return <-request.done
}
