"""How long schedules take on given speeds: closed forms, the production coordinator on a virtual clock, the paper."""
