"""Everything that decides about metadata, pure: registers (CASPaxos), voters, change functions, placement, failure detection."""
