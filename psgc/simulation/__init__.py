"""The times of schedules at given speeds: closed forms, and the production coordinator on a virtual clock."""
