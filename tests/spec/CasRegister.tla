---------------------------- MODULE CasRegister ----------------------------
(***************************************************************************)
(* One register of streamq (protocol, section 2): CASPaxos with the         *)
(* change rule P-2, the persistence rule P-3, the quorum read of P-4 and    *)
(* the retry rule of P-5.  The value is the list of the ids of the changes  *)
(* applied, which is the least forgiving f there is: applying it twice      *)
(* shows.                                                                   *)
(*                                                                          *)
(* Messages are sets which only grow (loss, delay, duplicates, reordering). *)
(* A ballot is one attempt at one change (or at an identity change, the     *)
(* slow path of a read); a proposer that times out tries again with another *)
(* ballot, in any order of ballot numbers, and leaves the old attempt.      *)
(***************************************************************************)
EXTENDS Integers, Sequences, FiniteSets, TLC

CONSTANTS Acceptor, Change, MaxBal, Reads, Mut

M(m) == m \in Mut
Bal == 1..MaxBal
Quorum == {Q \in SUBSET Acceptor : 2 * Cardinality(Q) > Cardinality(Acceptor)}
Range(s) == {s[i] : i \in 1..Len(s)}
IsPrefix(s, t) == Len(s) <= Len(t) /\ SubSeq(t, 1, Len(s)) = s

VARIABLES
  prom, abal, aval,  \* of each acceptor, durable (P-3): promise, accepted ballot, accepted value
  op,       \* op[b]: "none", "id" (identity change: the slow path of a read), or the change that ballot b attempts
  active,   \* active[c]: the ballot of c's present attempt, 0: none
  pm,       \* promise messages <<ballot, acceptor, accepted ballot, accepted value>>
  prop,     \* prop[b]: the value in b's accept messages, <<"-">> before they are sent
  acc,      \* accepted messages <<ballot, acceptor>>
  fl,       \* fl[b]: the longest value that was returned or returnable when b began
  rd, ret   \* the fast reader, and what it returned

vars == <<prom, abal, aval, op, active, pm, prop, acc, fl, rd, ret>>

None == <<"-">>
Chosen == {b \in Bal : prop[b] # None /\ {a \in Acceptor : <<b, a>> \in acc} \in Quorum}
\* every value that some operation has returned, or could return now
Out == {prop[b] : b \in Chosen} \cup ret \cup {<<>>}
Best == CHOOSE v \in Out : \A w \in Out : Len(w) <= Len(v)

NoRead == [n |-> 0, on |-> FALSE, floor |-> <<>>, ans |-> {}]

Init ==
  /\ prom = [a \in Acceptor |-> 0] /\ abal = [a \in Acceptor |-> 0] /\ aval = [a \in Acceptor |-> <<>>]
  /\ op = [b \in Bal |-> "none"] /\ active = [c \in Change |-> 0]
  /\ pm = {} /\ prop = [b \in Bal |-> None] /\ acc = {} /\ fl = [b \in Bal |-> <<>>]
  /\ rd = NoRead /\ ret = {}

\* Ballot b begins with its first promise (an attempt that got no promise yet has had no effect).
Promise(a, b, o) ==
  /\ prom[a] < b
  /\ IF op[b] = "none"
     THEN /\ op' = [op EXCEPT ![b] = o]
          /\ fl' = [fl EXCEPT ![b] = Best]
          /\ active' = IF o \in Change THEN [active EXCEPT ![o] = b] ELSE active
     ELSE op[b] = o /\ UNCHANGED <<op, fl, active>>
  /\ prom' = [prom EXCEPT ![a] = b]
  /\ pm' = pm \cup {<<b, a, abal[a], aval[a]>>}
  /\ UNCHANGED <<abal, aval, prop, acc, rd, ret>>

\* P-5: how f recognises its own change that succeeded unseen
Seen(c, v) == IF M("LastIdOnly") THEN v # <<>> /\ v[Len(v)] = c ELSE c \in Range(v)
F(o, v) == IF o = "id" \/ Seen(o, v) THEN v ELSE Append(v, o)

Propose(b) ==
  /\ op[b] # "none" /\ prop[b] = None
  /\ op[b] \in Change => active[op[b]] = b
  /\ \E Q \in Quorum :
       LET P == {m \in pm : m[1] = b /\ m[2] \in Q} IN
       /\ {m[2] : m \in P} = Q
       /\ LET top == CHOOSE m \in P : \A k \in P : k[3] <= m[3]
          IN  prop' = [prop EXCEPT ![b] = F(op[b], top[4])]
  /\ UNCHANGED <<prom, abal, aval, op, active, pm, acc, fl, rd, ret>>

Accept(a, b) ==
  /\ prop[b] # None /\ prom[a] <= b /\ abal[a] < b
  /\ prom' = [prom EXCEPT ![a] = b]
  /\ abal' = [abal EXCEPT ![a] = b]
  /\ aval' = [aval EXCEPT ![a] = prop[b]]
  /\ acc' = acc \cup {<<b, a>>}
  /\ UNCHANGED <<op, active, pm, prop, fl, rd, ret>>

\* the quorum read without a round (P-4): it asks, and changes nothing at the acceptors
ReadBegin ==
  /\ ~rd.on /\ rd.n < Reads /\ acc # {}
  /\ rd' = [n |-> rd.n + 1, on |-> TRUE, floor |-> Best, ans |-> {}]
  /\ UNCHANGED <<prom, abal, aval, op, active, pm, prop, acc, fl, ret>>
ReadAsk(a) ==
  /\ rd.on /\ a \notin {x[1] : x \in rd.ans}
  /\ rd' = [rd EXCEPT !.ans = @ \cup {<<a, prom[a], abal[a], aval[a]>>}]
  /\ UNCHANGED <<prom, abal, aval, op, active, pm, prop, acc, fl, ret>>
ReadEnd ==
  /\ rd.on
  /\ \E Q \in Quorum :
       LET A == {x \in rd.ans : x[1] \in Q} IN
       /\ {x[1] : x \in A} = Q
       /\ M("FastReadAny") \/ \A x, y \in A : x[3] = y[3]
       /\ M("NoPromiseClause") \/ M("FastReadAny") \/ \A x \in A : x[2] = x[3]
       /\ LET top == CHOOSE x \in A : \A k \in A : k[3] <= x[3]
          IN  /\ ret' = ret \cup {top[4]}
              /\ rd' = [rd EXCEPT !.on = FALSE, !.ans = {<<"ret", top[4]>>}]
  /\ UNCHANGED <<prom, abal, aval, op, active, pm, prop, acc, fl>>

\* mutant: P-3 dropped, an acceptor restarts with an older promise
Restart(a) ==
  /\ M("VolatilePromise") /\ prom[a] > abal[a]
  /\ prom' = [prom EXCEPT ![a] = abal[a]]
  /\ UNCHANGED <<abal, aval, op, active, pm, prop, acc, fl, rd, ret>>

Next ==
  \/ \E b \in Bal : Propose(b)
  \/ \E a \in Acceptor, b \in Bal : Accept(a, b) \/ \E o \in Change \cup {"id"} : Promise(a, b, o)
  \/ ReadBegin \/ ReadEnd
  \/ \E a \in Acceptor : ReadAsk(a) \/ Restart(a)

Spec == Init /\ [][Next]_vars
Symm == Permutations(Acceptor)

-----------------------------------------------------------------------------
\* all values that operations return are prefixes of one history
Agreement == \A v, w \in Out : IsPrefix(v, w) \/ IsPrefix(w, v)
\* what an operation returns contains all that had been returned when it began
Linear == /\ \A b \in Chosen : IsPrefix(fl[b], prop[b])
          /\ \A x \in rd.ans : x[1] = "ret" => IsPrefix(rd.floor, x[2])
\* a change is applied at most once, and it is applied when its attempt has returned
Once == \A v \in Out : Cardinality(Range(v)) = Len(v)
Applied == \A b \in Chosen : op[b] \in Change => op[b] \in Range(prop[b])
=============================================================================
