package chunk

import "time"

// Bounds of one chunk server. Each bounds memory or work that others can cause.
const (
	// maxConnInflight is how many requests of one connection are worked on; above it the
	// connection isn't read from.
	maxConnInflight = 1024

	// maxConnQueued is how many bytes of answers wait for a slow reader before its connection
	// isn't read from any more: 64 full parts.
	maxConnQueued = 4 << 20

	// maxParked is how many requests of one chunk wait while it is being settled. The client
	// library keeps no more writes of one chunk in flight than MaxInflightPerChunk.
	maxParked = 512

	// maxSettling is how many chunks are settled at the same time; the others queue.
	maxSettling = 64

	// After so many tries a settling that nobody waits for ends; later if perhaps nobody else knows
	// of the epoch.
	idleTries, aloneTries = 20, 100

	// maxCopies is how many parts (64 KiB) one settling chunk reads and sends at the same time.
	maxCopies = 4

	// maxRepairs is how many damaged blocks are being fetched from other members at a time.
	maxRepairs = 16

	// maxMissing is of how many damaged blocks of a chunk it is remembered that they were looked for
	// in vain. If there are more the oldest are looked for anew.
	maxMissing = 64

	// maxStrangers is how many chunks that this server holds nothing of may be asked about at the
	// metadata servers at a time.
	maxStrangers = 1024

	// readRetries is how often a block is read again when it doesn't match its checksum. It was
	// overwritten meanwhile, most likely; a block that stays wrong is damaged.
	readRetries = 3
)

// Times.
const (
	settleRetry   = 100 * time.Millisecond // between two attempts to settle a chunk
	settleTimeout = 5 * time.Second        // for one step of settling
	// lostStale is for how long the metadata servers' word that members are to be excluded holds; they
	// repeat it every second as long as it is so. One that came back is a coordinator again.
	lostStale     = 5 * time.Second
	settleYield   = time.Second            // to another coordinator that is at work
	strangerRest  = 10 * time.Second       // after a seal of a chunk that this server has nothing of
	reachTimeout  = time.Second            // for a member to answer before a settling begins
	meetTimeout   = 500 * time.Millisecond // for the next member of a chain to be reached
	commitSilence = time.Millisecond       // after it the commit mark travels by itself
	readPatience  = time.Second            // for the commit mark of a write that a read runs into
	redialFirst   = 20 * time.Millisecond  // doubled up to redialMax
	redialMax     = time.Second
	redialSoon    = 80 * time.Millisecond   // at most, in the first redialTries attempts: a process
	redialTries   = 20                      // that crashed is back within a second
	chainBan      = 10 * time.Second        // no chain after a link in it broke
	pingAfter     = 500 * time.Millisecond  // of silence of another chunk server
	peerSilence   = 1500 * time.Millisecond // after it the connection is given up
	pumpEvery     = time.Millisecond        // look again at what waits for space
	dropEvery     = 2 * time.Millisecond    // between two chunks that are forgotten
	// repairPatience is for how long servers are asked for a damaged block, each at least once;
	// salvagePause, before those that may have it are asked again; salvageRest, the same when all
	// have said that they haven't.
	repairPatience = 3 * time.Second
	salvagePause   = time.Second
	salvageRest    = time.Minute
)

// pressureHard is the pressure of the log from which on patches to a new member wait.
const pressureHard = 0.95

// Copies to new members.
const (
	maxCopiers  = 8        // chunks being copied at a time
	copyFirst   = 4        // parts of one of them under way at first
	copyParts   = 24       // and at most
	copyWrites  = 64       // parts that a target's store writes at a time
	copyMirrors = 128      // writes on their way to the target of one copy
	copyDamaged = 4096     // granules read again because they were damaged
	copyBurst   = 16       // parts looked at in one turn
	directPatch = 16 << 10 // bytes of a patch that lies in a buffer of its own: session.DirectSize

	// A copy makes passes until copyRest granules are left to be copied while writes wait; when it
	// takes long copyRestMost will do.
	copyRest       = 8
	copyPasses     = 8
	copyRestMost   = 64
	copyPassesMost = 100
	patchTries     = 250 // of one part of a settling, copyPause apart, while a log is full

	copySyncTime = 30 * time.Second      // for a target to make durable what it wrote to its store
	copyPatience = 10 * time.Second      // for the chunk to get ready
	copyPause    = 20 * time.Millisecond // when something isn't ready
	copyBreath   = 200 * time.Microsecond
)
