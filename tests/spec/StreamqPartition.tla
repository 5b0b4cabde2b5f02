-------------------------- MODULE StreamqPartition --------------------------
(***************************************************************************)
(* One partition of streamq: the rules of the replication protocol (cited   *)
(* as P-n, I-n) as a state machine, to be checked with TLC.  README.md      *)
(* beside this file tells how to run it and what it shows.                  *)
(*                                                                          *)
(* How messages are modelled.  The network may lose, duplicate, delay and   *)
(* reorder.  That is a set of messages which only grows and from which any  *)
(* message may be read at any time, or never.  Almost every such set here   *)
(* is kept as what determines it:                                           *)
(*   stores        every Store(e, offset, batch) ever sent by e's sequencer *)
(*   stored[e][r]  the largest local tail that r has told (Stored) in e     *)
(*                 while it was not sealed in e (smaller ones carry no more *)
(*                 information)                                             *)
(*   sTail[e][r]   the local tail in r's first answer to Seal(e) (-1: none) *)
(*   rTail[e][r]   the largest local tail of r in e ever; a sealed r has    *)
(*                 answers with every tail from sTail to rTail in the set   *)
(*   reg           the register; Open messages carry what it says           *)
(* A Stored is put in the set as soon as the data is durable, and the high  *)
(* watermark that a sequencer may announce is the largest that the Stored   *)
(* in the set allow: a sequencer that receives or sends them later, or      *)
(* never, announces no more than that.                                      *)
(*                                                                          *)
(* Crashes.  A replica's durable state survives a crash, so a crash and     *)
(* restart is a pause.  A sequencer that crashes never resumes (P-8): it is *)
(* one that takes no more steps.  A takeover keeps nothing but answers that *)
(* stay in the sets, so the choice of its quorum and of L is made in the    *)
(* step that changes the register: any number of concurrent takeovers, with *)
(* different L, each stopping anywhere, is covered (Seal and Repair are     *)
(* steps of their own).                                                     *)
(*                                                                          *)
(* Observers are passive, so all of them are always there: `seen` collects  *)
(* every <<offset, batch>> that any of them could conclude to be committed  *)
(* in any state passed: producers that are acked, consumers of a single     *)
(* replica (P-23), quorum readers (P-17, P-24), readers of closed epochs.   *)
(* The reader of the tip whose linearizability is checked is a process of   *)
(* its own (rd).                                                            *)
(***************************************************************************)
EXTENDS Integers, Sequences, FiniteSets, TLC

CONSTANTS
  Broker,    \* brokers, a symmetric set
  N, W, R,
  MaxEpoch,
  Load,      \* which batches are sent: "p", "pq", "pp", "ppq"
  MaxLoss,   \* how many replicas lose their data, together (I-1: at most W-1)
  LossKind,  \* subset of {"disk", "limbo"}
  TipRead,   \* TRUE: with one reader of the tip
  Late,      \* TRUE: steps of closed epochs too; FALSE: without those that commute into the time before, see below
  Mut        \* rules changed (mutants and literal readings), {} for the protocol

Batch ==
  CASE Load = "p"   -> {<<"p",1>>}
    [] Load = "pq"  -> {<<"p",1>>, <<"q",1>>}
    [] Load = "pp"  -> {<<"p",1>>, <<"p",2>>}
    [] Load = "ppq" -> {<<"p",1>>, <<"p",2>>, <<"q",1>>}

M(m) == m \in Mut

(***************************************************************************)
(* Late = FALSE leaves out, by hand, interleavings that lead to nothing     *)
(* new.  When e is closed, an assignment in e, a Store or Repair of e to a  *)
(* replica that was not told of e+1, and a replica's learning of an epoch   *)
(* before the last could each have happened just before the closing, with   *)
(* the same result (and with Repair clipped at a known end, and the earlier *)
(* epochs sealed when one is opened, none of them is possible in another    *)
(* way).  For the same reason the messages of a closed epoch that no step   *)
(* can use any more are forgotten.  Late = TRUE does none of this: it is    *)
(* for the mutants that need it, and for small instances that check this    *)
(* argument.                                                                *)
(***************************************************************************)

VARIABLES
  reg,    \* the register: sequence of [base, end (-1: open), inc: broker -> incarnation, sequencer, up]
  stores, \* Store messages: <<epoch, offset, batch>>
  log,    \* log[r][e]: the batches r holds durably in epoch e, from e's base on
  told,   \* told[r]: the epochs whose base r knows (its copy of the chain)
  seal,   \* seal[r]: sealed mark
  inc,    \* inc[r]: incarnation
  limbo,  \* limbo[r]: r is in limbo for every epoch up to this one
  stored, sTail, rTail,   \* messages, see above
  loss,   \* how many losses so far
  seen,   \* what observers concluded: <<offset, batch>>
  after,  \* after[b]: every offset below it was acked before b was first sent (-1: not sent)
  rd      \* the reader of the tip

vars == <<reg, stores, log, told, seal, inc, limbo, stored, sTail, rTail, loss, seen, after, rd>>

Max(S) == CHOOSE x \in S : \A y \in S : y <= x
Min2(a, b) == IF a < b THEN a ELSE b
Max2(a, b) == IF a > b THEN a ELSE b

Ep == 1..MaxEpoch
Eps == 1..Len(reg)
Last == Len(reg)
Base(e) == reg[e].base
Closed(e) == reg[e].end # -1
Reps(e) == DOMAIN reg[e].inc
LocalTail(r, e) == Base(e) + Len(log[r][e])
Has(r, e, o) == o >= Base(e) /\ o < LocalTail(r, e)
At(r, e, o) == log[r][e][o - Base(e) + 1]

SameInc(r, e) == r \in Reps(e) /\ reg[e].inc[r] = inc[r]
\* P-10, P-29: an answer of r counts in e
Good(r, e) == SameInc(r, e) /\ limbo[r] < e

\* the largest high watermark that e's sequencer can have announced: W-th largest local tail told (4.5)
WthTail(e, f) ==
  LET need == IF M("AckBelowW") THEN W - 1 ELSE W
      C == {c \in Base(e)..(Base(e) + Cardinality(Batch)) : Cardinality({r \in Reps(e) : f[e][r] >= c}) >= need}
  IN  Max(C \cup {Base(e)})
HighWatermark(e) == WthTail(e, stored)
MaxHighWatermark == Max({HighWatermark(e) : e \in Eps})

-----------------------------------------------------------------------------
(* What observers can conclude in the present state *)

\* producers (P-11), and readers that count W unsealed tails (P-17, P-24)
WatermarkConc ==
  {<<x[2], x[3]>> : x \in {y \in stores : y[1] \in Eps /\ y[2] < HighWatermark(y[1])}}
\* mutant: readers that count sealed tails too
SealedConc ==
  IF M("CountSealedTails")
  THEN {<<x[2], x[3]>> : x \in {y \in stores : y[1] \in Eps /\ y[2] < WthTail(y[1], rTail)}} ELSE {}
\* a consumer that reads from r alone (P-23): below the largest high watermark that r can know it is served,
\* at an offset, what r holds there in the newest epoch
KnownWatermark(r) ==
  LET E == IF M("WatermarkUnopened") THEN Eps ELSE told[r] \cap Eps
  IN  Max({0} \cup {HighWatermark(e) : e \in E})
ServeConc(r) ==
  IF \A e \in Eps : log[r][e] = <<>> THEN {} ELSE
  UNION {LET E == {e \in Eps : Has(r, e, o)}
         IN  IF E = {} THEN {} ELSE {<<o, At(r, Max(E), o)>>}
         : o \in 0..(KnownWatermark(r) - 1)}
\* a consumer that knows from the register that e is closed, reading from any holder of e
ClosedConc(r) ==
  UNION {IF Closed(e) /\ log[r][e] # <<>> THEN {<<o, At(r, e, o)>> : o \in {x \in Base(e)..(reg[e].end - 1) : Has(r, e, x)}} ELSE {}
         : e \in Eps}
\* mutant: a sequencer keeps void batches in its idempotence table, and answers a retry of one with the void offset
StaleConc ==
  IF M("StaleTable")
  THEN {<<x[2], x[3]>> : x \in {y \in stores : y[1] < Last /\ y[2] >= reg[y[1]].end /\ reg[y[1]].sequencer = reg[Last].sequencer
                                             /\ y[2] < HighWatermark(Last)}} ELSE {}
Conc == WatermarkConc \cup SealedConc \cup StaleConc \cup UNION {ServeConc(r) \cup ClosedConc(r) : r \in Broker}

Observe == seen' = seen \cup Conc'

-----------------------------------------------------------------------------
NoRead == [on |-> FALSE, e |-> 0, floor |-> 0, ans |-> [r \in Broker |-> -1], uns |-> {}, conf |-> FALSE]

Init ==
  /\ \E s \in Broker, S \in SUBSET Broker :
       /\ s \in S /\ Cardinality(S) = N
       /\ reg = <<[base |-> 0, end |-> -1, inc |-> [r \in S |-> 0], sequencer |-> s, up |-> TRUE]>>
       /\ told = [r \in Broker |-> IF r \in S THEN {1} ELSE {}]
  /\ stores = {}
  /\ log = [r \in Broker |-> [e \in Ep |-> <<>>]]
  /\ seal = [r \in Broker |-> 0]
  /\ inc = [r \in Broker |-> 0]
  /\ limbo = [r \in Broker |-> 0]
  /\ stored = [e \in Ep |-> [r \in Broker |-> -1]]
  /\ sTail = [e \in Ep |-> [r \in Broker |-> -1]]
  /\ rTail = [e \in Ep |-> [r \in Broker |-> -1]]
  /\ loss = 0
  /\ seen = {}
  /\ after = [b \in Batch |-> -1]
  /\ rd = NoRead

-----------------------------------------------------------------------------
(* Storing (section 4) *)

Assigned(e) == {x \in stores : x[1] = e}
\* P-34: the idempotence table of e's sequencer: the fold over the log that it holds, and what it assigned itself
Held(s, e) == UNION {{log[s][d][i] : i \in 1..Len(log[s][d])} : d \in 1..(e-1)}
Table(s, e) == Held(s, e) \cup {x[3] : x \in Assigned(e)}

\* A sequencer is told of its own epoch by the register, and stops at the latest when its own replica refuses (P-14).
\* A request of a producer may be repeated, delayed and delivered to any sequencer, present or past, at any time.
Serving(s, e) == reg[e].up /\ e \in told[s] /\ Good(s, e) /\ seal[s] < e

NextInSequence(b, T) == b[2] = 1 \/ <<b[1], b[2]-1>> \in T

Assign(e, b) ==
  LET s == reg[e].sequencer IN
  /\ e = Last \/ Late
  /\ Serving(s, e)
  /\ b \notin Table(s, e)
  /\ M("NoGapCheck") \/ NextInSequence(b, Table(s, e))
  /\ stores' = stores \cup {<<e, Base(e) + Cardinality(Assigned(e)), b>>}
  /\ after' = IF after[b] = -1 THEN [after EXCEPT ![b] = MaxHighWatermark] ELSE after
  /\ UNCHANGED <<reg, log, told, seal, inc, limbo, stored, sTail, rTail, loss, seen, rd>>

\* mutant: after a restart the sequencer goes on in its own epoch, from its own local tail (P-8, P-12 dropped)
AssignResumed(e, b) ==
  LET s == reg[e].sequencer
      T == Held(s, e) \cup {log[s][e][i] : i \in 1..Len(log[s][e])} IN
  /\ M("Resume")
  /\ Serving(s, e)
  /\ b \notin T /\ NextInSequence(b, T)
  /\ stores' = stores \cup {<<e, LocalTail(s, e), b>>}
  /\ after' = IF after[b] = -1 THEN [after EXCEPT ![b] = MaxHighWatermark] ELSE after
  /\ UNCHANGED <<reg, log, told, seal, inc, limbo, stored, sTail, rTail, loss, rd>>
  /\ Observe

\* 4.3, 4.4: r receives the Store at its local tail, makes it durable and reports its local tail
Store(r, e) ==
  /\ e = Last \/ Late
  /\ e \in told[r]
  /\ SameInc(r, e) /\ (limbo[r] < e \/ M("LimboStores"))
  /\ seal[r] < e
  /\ \E x \in stores :
       /\ x[1] = e /\ x[2] = LocalTail(r, e)
       /\ log' = [log EXCEPT ![r][e] = Append(@, x[3])]
       /\ stored' = [stored EXCEPT ![e][r] = Max2(@, x[2] + 1)]
       /\ rTail' = [rTail EXCEPT ![e][r] = Max2(@, x[2] + 1)]
  /\ UNCHANGED <<reg, stores, told, seal, inc, limbo, sTail, loss, after, rd>>
  /\ Observe

\* literal reading: "a base below its local tail is a duplicate: it answers with that tail", also when sealed
DupSealed(r, e) ==
  /\ M("DupSealedStored")
  /\ Good(r, e) /\ seal[r] >= e /\ stored[e][r] < LocalTail(r, e) /\ LocalTail(r, e) > Base(e)
  /\ stored' = [stored EXCEPT ![e][r] = LocalTail(r, e)]
  /\ UNCHANGED <<reg, stores, log, told, seal, inc, limbo, sTail, rTail, loss, after, rd>>
  /\ Observe

-----------------------------------------------------------------------------
(* Takeover (section 5) *)

\* step 1: r seals e and answers
Seal(r) ==
  LET e == Last IN
  /\ e < MaxEpoch \/ Late      \* the last epoch of the model is not closed any more
  /\ r \in Reps(e) /\ seal[r] < e
  /\ Good(r, e) \/ M("WrongInc")
  /\ seal' = [seal EXCEPT ![r] = e]
  /\ sTail' = [sTail EXCEPT ![e][r] = IF @ = -1 THEN LocalTail(r, e) ELSE Min2(@, LocalTail(r, e))]
  /\ rTail' = [rTail EXCEPT ![e][r] = Max2(@, LocalTail(r, e))]
  /\ UNCHANGED <<reg, stores, log, told, inc, limbo, stored, loss, seen, after, rd>>

Answered(e) == {r \in Reps(e) : sTail[e][r] # -1}

\* steps 3 and 4: the next batch of e below some takeover's L, stored by a sealed replica of e (B itself included)
Repair(r, e) ==
  /\ e = Last \/ Late
  /\ \/ Good(r, e) /\ (seal[r] >= e \/ M("RepairUnsealed"))
     \/ ~Good(r, e) /\ M("RepairElsewhere")      \* step 4: any broker may take the place of a lost replica
  /\ Cardinality(Answered(e)) >= R
  /\ \E q \in Answered(e) : rTail[e][q] > LocalTail(r, e)
  /\ ~M("LateRepair") /\ e + 1 \in told[r] => LocalTail(r, e) < reg[e].end    \* never at or past an end that r knows
  /\ \E x \in stores :
       /\ x[1] = e /\ x[2] = LocalTail(r, e)
       /\ log' = [log EXCEPT ![r][e] = Append(@, x[3])]
       /\ rTail' = [rTail EXCEPT ![e][r] = Max2(@, x[2] + 1)]
       /\ stored' = IF Good(r, e) /\ seal[r] < e THEN [stored EXCEPT ![e][r] = Max2(@, x[2] + 1)] ELSE stored
  /\ UNCHANGED <<reg, stores, told, seal, inc, limbo, sTail, loss, after, rd>>
  /\ Observe

\* the whole of epoch d (closed at its end) that some broker still holds, or <<>> where nobody does
Copies(d) ==
  {log[r][d] : r \in {x \in Broker : d + 1 <= Last /\ LocalTail(x, d) >= reg[d].end}}
Whole(d) == IF reg[d].end = Base(d) THEN <<>> ELSE SubSeq(CHOOSE l \in Copies(d) : TRUE, 1, reg[d].end - Base(d))

NewSets(b) == {S \in SUBSET Broker : b \in S /\ Cardinality(S) = N}

\* step 5: the compare-and-swap of takeover by b, with one of the L that the answers allow.  It may take effect after
\* b lost its data (a proposal that b left half done is completed by others): then nobody serves the epoch (up = FALSE).
Close(b) ==
  LET e == Last
      up == Good(b, e) IN
  /\ Last < MaxEpoch /\ ~Closed(e) /\ b \in Reps(e)
  /\ \E Q \in SUBSET Answered(e) :
       /\ Cardinality(Q) = R
       /\ \E L \in Max({sTail[e][q] : q \in Q})..Max({rTail[e][q] : q \in Q}) :
            /\ M("NoRepair") \/ L = Base(e)                        \* P-18
                 \/ Cardinality({r \in Reps(e) \cup (IF M("RepairElsewhere") THEN Broker ELSE {}) : rTail[e][r] >= L}) >= W
            /\ \/ M("NoComplete")
               \/ up /\ LocalTail(b, e) >= L                              \* step 3
                     /\ \A d \in 1..(e-1) : reg[d].end = Base(d) \/ Copies(d) # {}
               \/ ~up /\ (L = Base(e) \/ rTail[e][b] >= L)
            /\ \E S \in NewSets(b) :
                 reg' = Append([reg EXCEPT ![e].end = L],
                          [base |-> L, end |-> -1, inc |-> [r \in S |-> IF r = b THEN reg[e].inc[b] ELSE inc[r]],
                           sequencer |-> b, up |-> up])
  /\ log' = IF M("NoComplete") \/ ~up THEN log
            ELSE [log EXCEPT ![b] = [d \in Ep |-> IF d < e THEN Whole(d) ELSE @[d]]]
  /\ IF Late THEN UNCHANGED <<stores, stored, sTail, rTail>>
     ELSE /\ stores' = {x \in stores : x[1] # e \/ x[2] < HighWatermark(e)}
          /\ stored' = [stored EXCEPT ![e] = [r \in Broker |-> HighWatermark(e)]]
          /\ sTail' = [sTail EXCEPT ![e] = [r \in Broker |-> -1]]
          /\ rTail' = [rTail EXCEPT ![e] = [r \in Broker |-> -1]]
  /\ UNCHANGED <<told, seal, inc, limbo, loss, after, rd>>
  /\ Observe

\* mutant: the register is written without comparing: a late takeover of a closed epoch replaces what follows
BlindClose(b) ==
  /\ M("BlindWrite")
  /\ \E e \in 1..(Last-1) :
       /\ SameInc(b, e)
       /\ \E Q \in SUBSET Answered(e) :
            /\ Cardinality(Q) = R
            /\ \E L \in Max({sTail[e][q] : q \in Q})..Max({rTail[e][q] : q \in Q}) :
                 /\ L = Base(e) \/ Cardinality({r \in Reps(e) : rTail[e][r] >= L}) >= W
                 /\ LocalTail(b, e) >= L
                 /\ reg' = Append([SubSeq(reg, 1, e) EXCEPT ![e].end = L],
                             [base |-> L, end |-> -1, inc |-> [r \in Reps(e) |-> inc[r]], sequencer |-> b, up |-> TRUE])
  /\ UNCHANGED <<stores, log, told, seal, inc, limbo, stored, sTail, rTail, loss, after, rd>>
  /\ Observe

\* mutant: a planned replacement by a live sequencer that closes its epoch without sealing it
ReplaceNoSeal(s) ==
  LET e == Last IN
  /\ M("ReplaceNoSeal") /\ Last < MaxEpoch /\ reg[e].sequencer = s /\ Serving(s, e)
  /\ HighWatermark(e) = Base(e) + Cardinality(Assigned(e)) /\ LocalTail(s, e) >= HighWatermark(e)
  /\ \E S \in NewSets(s) :
       reg' = Append([reg EXCEPT ![e].end = HighWatermark(e)],
                [base |-> HighWatermark(e), end |-> -1, inc |-> [r \in S |-> inc[r]], sequencer |-> s, up |-> TRUE])
  /\ seal' = [seal EXCEPT ![s] = e]
  /\ UNCHANGED <<stores, log, told, inc, limbo, stored, sTail, rTail, loss, after, rd>>
  /\ Observe

\* step 6, and learning from the register: r is told of epoch e and of the chain up to it,
\* seals everything before e and drops what is void
Cut(l, e, end) == SubSeq(l, 1, Min2(Len(l), Max2(0, end - Base(e))))
Open(r, e) ==
  /\ e = Last \/ Late
  /\ e \notin told[r]
  /\ told' = [told EXCEPT ![r] = IF M("SkipChain") THEN @ \cup {e} ELSE @ \cup 1..e]
  /\ seal' = IF M("OpenNoSeal") THEN seal ELSE [seal EXCEPT ![r] = Max2(@, e - 1)]
  /\ log' = [log EXCEPT ![r] = [d \in Ep |-> IF d >= e THEN @[d]
                                 ELSE Cut(@[d], d, IF M("SkipChain") THEN Base(e) ELSE reg[d].end)]]
  /\ UNCHANGED <<reg, stores, inc, limbo, stored, sTail, rTail, loss, after, rd>>
  /\ Observe

-----------------------------------------------------------------------------
(* Faults *)

\* r loses everything.  "disk": it is admitted with a new incarnation.  "limbo": it keeps the incarnation and is in
\* limbo for every epoch that the register names when it comes back.
Lose(r, k) ==
  /\ loss < MaxLoss /\ k \in LossKind
  /\ loss' = loss + 1
  /\ log' = [log EXCEPT ![r] = [e \in Ep |-> <<>>]]
  /\ told' = [told EXCEPT ![r] = IF M("LimboCopy") \/ M("LimboStores") THEN @ ELSE {}]
  /\ seal' = IF M("LimboCopy") THEN seal ELSE [seal EXCEPT ![r] = 0]
  /\ IF k = "disk" THEN inc' = [inc EXCEPT ![r] = @ + 1] /\ UNCHANGED limbo
                   ELSE limbo' = [limbo EXCEPT ![r] = Last] /\ UNCHANGED inc
  /\ UNCHANGED <<reg, stores, stored, sTail, rTail, seen, after, rd>>

\* mutant: limbo ends when r has copied what one other replica holds, while the epoch is open
CopyOutOfLimbo(r) ==
  /\ M("LimboCopy") /\ limbo[r] > 0
  /\ \E x \in Broker \ {r} : limbo[x] = 0 /\ log' = [log EXCEPT ![r] = log[x]]
  /\ limbo' = [limbo EXCEPT ![r] = 0]
  /\ UNCHANGED <<reg, stores, told, seal, inc, stored, sTail, rTail, loss, after, rd>>
  /\ Observe

\* mutants: r restarts without its sealed mark; r restarts without the last batch it reported (durability = memory)
Forget(r) ==
  \/ /\ M("VolatileSeal") /\ seal[r] > 0
     /\ seal' = [seal EXCEPT ![r] = 0]
     /\ UNCHANGED <<reg, stores, log, told, inc, limbo, stored, sTail, rTail, loss, after, rd>>
     /\ Observe
  \/ /\ M("MemoryAck") /\ loss < MaxLoss
     /\ \E e \in Eps : Len(log[r][e]) > 0 /\ log' = [log EXCEPT ![r][e] = SubSeq(@, 1, Len(@) - 1)]
     /\ loss' = loss + 1
     /\ UNCHANGED <<reg, stores, told, seal, inc, limbo, stored, sTail, rTail, after, rd>>
     /\ Observe

-----------------------------------------------------------------------------
(* The reader of the tip (P-24): it asks the replicas of an epoch that it believes in, perhaps an old one *)

ReadStart ==
  /\ TipRead /\ ~rd.on
  /\ \E e \in Eps : rd' = [NoRead EXCEPT !.on = TRUE, !.e = e, !.floor = MaxHighWatermark]
  /\ UNCHANGED <<reg, stores, log, told, seal, inc, limbo, stored, sTail, rTail, loss, seen, after>>
ReadAnswer(r) ==
  /\ rd.on /\ r \in Reps(rd.e) /\ rd.ans[r] = -1
  /\ Good(r, rd.e) \/ M("TipCountsBad")
  /\ rd' = [rd EXCEPT !.ans[r] = LocalTail(r, rd.e), !.uns = IF seal[r] < rd.e THEN @ \cup {r} ELSE @]
  /\ UNCHANGED <<reg, stores, log, told, seal, inc, limbo, stored, sTail, rTail, loss, seen, after>>
ReadRegister ==
  /\ rd.on /\ ~rd.conf /\ rd.e = Last
  /\ rd' = [rd EXCEPT !.conf = TRUE]
  /\ UNCHANGED <<reg, stores, log, told, seal, inc, limbo, stored, sTail, rTail, loss, seen, after>>

Told(rdr) == {r \in Broker : rdr.ans[r] # -1}
ReadDone ==
  /\ rd.on
  /\ Cardinality(Told(rd)) >= R
  /\ rd.conf \/ Cardinality(rd.uns) >= W \/ M("TipNoConfirm")
ReadU == Max({rd.ans[r] : r \in Told(rd)})

-----------------------------------------------------------------------------
Next ==
  \/ \E e \in Eps, b \in Batch : Assign(e, b) \/ AssignResumed(e, b)
  \/ \E r \in Broker : \E e \in Eps : Store(r, e) \/ DupSealed(r, e) \/ Repair(r, e) \/ Open(r, e)
  \/ \E r \in Broker : Seal(r) \/ Close(r) \/ BlindClose(r) \/ ReplaceNoSeal(r) \/ CopyOutOfLimbo(r) \/ Forget(r)
  \/ \E r \in Broker : ReadAnswer(r) \/ \E k \in {"disk", "limbo"} : Lose(r, k)
  \/ ReadStart \/ ReadRegister

Spec == Init /\ [][Next]_vars

Symm == Permutations(Broker)

-----------------------------------------------------------------------------
(* Invariants (section 9) *)

TypeOK ==
  /\ Last \in Ep /\ loss \in 0..MaxLoss
  /\ \A r \in Broker : told[r] \subseteq Eps /\ seal[r] \in 0..MaxEpoch
  /\ \A e \in Eps, r \in Broker : \A i \in 1..Len(log[r][e]) :
       (Closed(e) /\ ~Late) \/ <<e, Base(e) + i - 1, log[r][e][i]>> \in stores

\* the epoch that holds offset o, by the register
Cover(o) == CHOOSE e \in Eps : Base(e) <= o /\ (o < reg[e].end \/ ~Closed(e))

\* I-1: what anybody concluded is still held at its offset
I1 == \A x \in seen : \E r \in Broker : Has(r, Cover(x[1]), x[1]) /\ At(r, Cover(x[1]), x[1]) = x[2]
\* I-2: nobody ever concluded two things of one offset
I2 == \A x, y \in seen : x[1] = y[1] => x[2] = y[2]
\* I-3: one producer's batches in the order sent; what was acked before b was sent lies below b
I3 == /\ \A x, y \in seen : x[2][1] = y[2][1] /\ x[2][2] < y[2][2] => x[1] < y[1]
      /\ \A x \in seen : x[1] >= after[x[2]]
\* I-4: below the base of the open epoch there is no hole, and what was concluded has none below it
I4 == /\ \A e \in Eps : Closed(e) => \A o \in Base(e)..(reg[e].end - 1) : \E r \in Broker : Has(r, e, o)
      /\ \A x \in seen : \A o \in 0..(x[1]-1) : \E r \in Broker : Has(r, Cover(o), o)
\* I-5: a batch is in the log at most once (exactly once if acked: I1)
I5 == \A x, y \in seen : x[2] = y[2] => x[1] = y[1]
\* I-6: no high watermark of an epoch goes past what a takeover kept of it
I6 == \A e \in Eps : Closed(e) => HighWatermark(e) <= reg[e].end
\* I-8: the chain
I8 == /\ \A e \in Eps : Closed(e) <=> e < Last
      /\ \A e \in 1..(Last-1) : Base(e+1) = reg[e].end /\ reg[e].end >= Base(e)
\* P-12, P-13
P12 == \A x, y \in stores : x[1] = y[1] /\ x[2] = y[2] => x[3] = y[3]
\* P-24: everything acked before the read began is below its bound U
TipLin == ReadDone => rd.floor <= ReadU
\* literal reading of P-24: tails of different epochs counted together
MixTip ==
  M("MixEpochs") =>
    \A t \in 1..3 :
      Cardinality({r \in Broker : told[r] # {} /\ seal[r] < Max(told[r]) /\ Good(r, Max(told[r]))
                                  /\ LocalTail(r, Max(told[r])) >= t}) >= W
      => t <= MaxHighWatermark
\* I-7, takeover half: with N-R replicas of the open epoch gone for ever (lost ones counted), the rest can finish a
\* takeover.  What is asked of the rest: R answers, and W replicas to hold what lies above the high watermark.
AvailTakeover ==
  LET e == Last IN
  \A D \in SUBSET Reps(e) :
    LET Up == {r \in Reps(e) \ D : Good(r, e)} IN
    Cardinality(Up) = R =>
      \/ Max({LocalTail(r, e) : r \in Up}) <= HighWatermark(e)
      \/ Cardinality(Up) >= W
      \/ M("RepairElsewhere") /\ Cardinality(Broker \ D) >= W
\* I-7, append half: with N-W replicas gone, the sequencer's among them, the rest can finish a takeover
AvailAppend ==
  LET e == Last IN
  \A D \in SUBSET Reps(e) :
    reg[e].sequencer \in D /\ Cardinality(D) = N - W => Cardinality(Reps(e) \ D) >= R
=============================================================================
