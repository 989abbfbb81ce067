package mds

import (
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestExitAndRegistration: the certificate of an exit is compared with what the log says about the
// server, not with what is about to be said, and a new leader counts it like the one before.
func TestExitAndRegistration(t *testing.T) {
	f := newFuzzSim()
	defer f.Close()
	reg := control.RegisterCSReq{Disk: [16]byte{1}, Boot: 1, Addr: "10.0.0.1:1", Host: "h", Path: "/p",
		Capacity: 1 << 40, Instance: 11}
	register := func() {
		t.Helper()
		if _, err := f.ask(dataplane.RoleCS, control.OpRegisterCS, control.Marshal(&reg)); err != nil {
			t.Fatal(err)
		}
	}
	exit := func(boot uint64) {
		t.Helper()
		if _, err := f.ask(dataplane.RoleSupervisor, control.OpExited,
			control.Marshal(&control.ExitedReq{CS: 1, Boot: boot})); err != nil {
			t.Fatal(err)
		}
	}
	certified := func() uint64 { return f.l.leases.at(1).exitedBoot }
	verdict := func(after time.Duration) leaseVerdict {
		return f.l.leases.verdict(1, f.l.now()+int64(after))
	}
	register()
	// A new leader, which never gave it a lease, and may not exclude it for silence yet.
	f.Depose()
	f.Lead()
	if v := verdict(0); v != leaseNewLeader {
		t.Errorf("a new leader says %d", v)
	}
	exit(2)
	if certified() != 0 {
		t.Error("the exit of a process that never registered counts")
	}
	exit(1)
	if certified() != 1 || verdict(0) != leaseGrace || verdict(exitGrace) != leaseGone {
		t.Errorf("certified %d, %d at once, %d later", certified(), verdict(0), verdict(exitGrace))
	}
	// The next process is about to register. The certificate of the one before doesn't count against
	// it: not before the registration is applied, nor then.
	reg.Boot, reg.Instance = 2, 12
	registered := false
	f.Handle(dataplane.RoleCS, 500, 1, control.OpRegisterCS, &reg, func(_ []byte, err error) {
		registered = err == nil
	})
	if len(f.commits) != 1 || registered {
		t.Fatal("the registration isn't on its way")
	}
	if v := verdict(exitGrace); v != leaseReturning {
		t.Errorf("while it registers: %d", v)
	}
	commit := f.commits
	f.commits = nil
	exit(1)
	if v := verdict(exitGrace); v != leaseReturning {
		t.Errorf("told again while the next one registers: %d", v)
	}
	commit[0]()
	f.flush()
	if !registered || certified() != 0 || verdict(exitGrace) != leaseNewLeader ||
		verdict(leaseOut) == leaseNewLeader {
		t.Errorf("registered %v, certified %d, %d", registered, certified(), verdict(exitGrace))
	}
	exit(1)
	if certified() != 0 {
		t.Error("the certificate of the process before counts against its successor")
	}
	// The same with a leader that learns of the registration by the log only.
	f.Depose()
	f.Lead()
	exit(1)
	if certified() != 0 || verdict(0) != leaseNewLeader {
		t.Errorf("certified %d, %d by a new leader", certified(), verdict(0))
	}
}

// TestExitWhileRegistering: a process ends while its registration, the first one or a later one, is
// being handled. The certificate, which isn't repeated, counts: it is given no lease any more.
func TestExitWhileRegistering(t *testing.T) {
	for _, first := range []bool{false, true} {
		f := newFuzzSim()
		defer f.Close()
		reg := control.RegisterCSReq{Disk: [16]byte{1}, Boot: 1, Addr: "10.0.0.1:1", Host: "h",
			Path: "/p", Capacity: 1 << 40, Instance: 11}
		register := func() {
			t.Helper()
			if _, err := f.ask(dataplane.RoleCS, control.OpRegisterCS, control.Marshal(&reg)); err != nil {
				t.Fatal(err)
			}
		}
		register()
		before := uint64(1) // that of whose exit is known before the registration is applied
		if first {
			reg.Boot, reg.Instance, before = 2, 12, 0
			f.Depose() // to a new leader the one before isn't connected
			f.Lead()
		}
		answer := dataplane.OK
		f.Handle(dataplane.RoleCS, 500, 1, control.OpRegisterCS, &reg, func(_ []byte, err error) {
			answer = dataplane.KindOf(err)
		})
		if len(f.commits) != 1 {
			t.Fatalf("first %v: the registration isn't on its way: %v", first, answer)
		}
		commit := f.commits
		f.commits = nil
		if _, err := f.ask(dataplane.RoleSupervisor, control.OpExited,
			control.Marshal(&control.ExitedReq{CS: 1, Boot: reg.Boot})); err != nil {
			t.Fatal(err)
		}
		verdict := func(after time.Duration) leaseVerdict {
			return f.l.leases.verdict(1, f.l.now()+int64(after))
		}
		e := f.l.leases.at(1)
		if e.exitedBoot != before || verdict(exitGrace) != leaseReturning {
			t.Errorf("first %v: certified %d, %d while it registers", first, e.exitedBoot,
				verdict(exitGrace))
		}
		commit[0]()
		f.flush()
		if answer != dataplane.NotReady {
			t.Errorf("first %v: the registration of a process that has ended: %v", first, answer)
		}
		if e.exitedBoot != reg.Boot || verdict(0) != leaseGrace || verdict(exitGrace) != leaseGone {
			t.Errorf("first %v: certified %d, %d at once, %d later", first, e.exitedBoot, verdict(0),
				verdict(exitGrace))
		}
		reg.Boot, reg.Instance = reg.Boot+1, reg.Instance+1
		register()
		if e.exitedBoot != 0 || !f.l.leases.live(1, f.l.now()) {
			t.Errorf("first %v: the next process: certified %d", first, e.exitedBoot)
		}
	}
}
